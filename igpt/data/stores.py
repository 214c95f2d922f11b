"""How this room opens what a user names: a store, or one file by path or URI."""

import os
from pathlib import Path

from igpt.errors import UserError
from igpt.storage import S3Settings, Store, open_store


def as_store(where: str | Path | Store) -> Store:
    """The store itself, or the one at a path or URI, reached as the environment says."""
    if isinstance(where, str | Path):
        return open_store(str(where), S3Settings.from_environment(os.environ))
    return where


def open_file(uri: str) -> bytes:
    """The bytes of one file. Raises NotFound where there is none."""
    folder, _, name = uri.rpartition("/")
    if not name:
        raise UserError(f"{uri!r} names no file")
    return as_store(folder or ("/" if uri.startswith("/") else ".")).get(name)
