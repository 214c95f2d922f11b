"""Opens a store by its URI, and proves that it can be written."""

import difflib
import os
import re
import secrets
from pathlib import Path
from urllib.parse import unquote, urlsplit

from igpt.errors import Unreachable, UserError
from igpt.storage.base import Store, check_key
from igpt.storage.directory import DirectoryStore
from igpt.storage.settings import FORMS, S3Settings, absolute_path


def open_store(uri: str, settings: S3Settings | None = None, *, in_use: bool = False) -> Store:
    """The store at a path, `file:///path` or `s3://bucket[/prefix]`.

    settings: how to reach S3; None reads IGPT_S3_ENDPOINT and the like from the environment.
    in_use: something is in it. A directory that is missing or empty is then Unreachable: its file
    system is not mounted.

    Nothing is read or written before it is used. Raises UserError for a scheme that there is not,
    or for what cannot be a bucket or a prefix.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _open_directory(uri, in_use)
    if scheme == "file":
        return _open_file(uri, in_use)
    if scheme == "s3":
        return _open_bucket(uri, rest, settings or S3Settings.from_environment(os.environ))
    close = difflib.get_close_matches(scheme.lower(), ["file", "s3"], n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]}://{rest}?" if close else ""
    raise UserError(f"store {uri!r} has an unknown scheme", expected=FORMS, mend=hint)


def check_writable(store: Store) -> None:
    """Creates a small object, and deletes it.

    Raises UserError or Unreachable where that fails, or where the store would let two writers
    create the same object.
    """
    key = f"igpt-check-{secrets.token_hex(8)}"
    try:
        created = [store.create(key, b""), store.create(key, b"")]
    finally:
        store.delete([key])
    if created != [True, False]:
        raise Unreachable(
            f"{store.uri} creates an object that exists already",
            expected='a server that honours "If-None-Match: *"',
            mend="Without it two attempts could both own a run; use another server or a directory",
        )


def _open_directory(path: str, in_use: bool) -> Store:
    if not path:
        raise UserError("the store has no name", expected=FORMS)
    return DirectoryStore(absolute_path(path, Path.cwd()), in_use=in_use)


def _open_file(uri: str, in_use: bool) -> Store:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path:
        mend = f"Did you mean file:///{parts.netloc}{parts.path}?"
        raise UserError(f"store {uri!r} names a machine", expected=FORMS, mend=mend)
    return _open_directory(unquote(parts.path), in_use)


def _open_bucket(uri: str, rest: str, settings: S3Settings) -> Store:
    from igpt.storage.s3 import S3Store  # boto3 takes half a second to import

    bucket, _, prefix = rest.removesuffix("/").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise UserError(
            f"store {uri!r}: {bucket!r} is not a bucket",
            expected="3 to 63 small letters, digits, dots and hyphens, as in s3://bucket/prefix",
        )
    try:
        return S3Store(bucket, check_key(prefix) if prefix else "", settings)
    except ValueError as error:
        raise UserError(f"store {uri!r}: {error}", expected=FORMS) from None
