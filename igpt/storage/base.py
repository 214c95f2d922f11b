"""The contract of a store, and the rules its keys obey."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    key: str
    size: int  # bytes
    modified: float  # seconds since the epoch, by the store's own clock


class Store(Protocol):
    """Where runs and data live. All methods may raise `Unreachable`."""

    @property
    def uri(self) -> str:
        """The root as a URI or path, without a trailing slash."""

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound where there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Writes the whole object or nothing, over what was there."""

    def create(self, key: str, data: bytes) -> bool:
        """Writes the object unless the key exists; says whether it did. One writer wins."""

    def upload(self, key: str, path: Path) -> None:
        """Writes a file as an object, in parts where it is large, with a checksum."""

    def download(self, key: str, path: Path) -> None:
        """Writes the object to `path`, by way of a temporary name beside it."""

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object whose key begins with `prefix`, sorted by key."""

    def children(self, prefix: str = "") -> list[str]:
        """The names one level below the folder `prefix`, of objects and folders, sorted."""

    def exists(self, key: str) -> bool:
        """Whether there is an object of exactly this key."""

    def delete(self, keys: Sequence[str]) -> None:
        """Removes the objects; a missing one is no error."""

    def sub(self, prefix: str) -> "Store":
        """The same store seen from the folder `prefix`."""

    def local_path(self, key: str) -> Path | None:
        """The file itself where the store is a directory of this machine, else None."""


def check_key(key: str) -> str:
    """The key, if it is relative and stays below the root. Raises ValueError otherwise."""
    parts = key.split("/")
    if not key or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{key!r} is not a key: relative names separated by single slashes")
    return key


def check_prefix(prefix: str) -> str:
    """The prefix, if keys can begin so (or empty). Raises ValueError otherwise."""
    check_key(f"{prefix}x")
    return prefix
