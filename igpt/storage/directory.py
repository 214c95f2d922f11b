"""A store in a directory, of this machine or shared by the nodes of a cluster.

Objects are files. Writes go by way of a temporary name (`igpt.storage.files`), exclusive creates
by a hard link, so any number of processes on any number of nodes may write at once. Folders come
with their first object and go with their last, as in S3.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from igpt.errors import NotFound, Unreachable
from igpt.storage.base import ObjectInfo, Store, check_key, check_prefix
from igpt.storage.files import TEMPORARY, explained, write_file

#: A temporary file untouched for a day (in seconds) belongs to a process that was killed.
_ABANDONED = 24 * 3600.0
#: The device number of the file system that each store in use was last seen on.
_SEEN_ON: dict[Path, int] = {}


@dataclass(frozen=True)
class DirectoryStore:
    """The store below `root / prefix`. Keys go through `check_key`; `prefix` is a key or empty.

    in_use: something is known to be there. Where nothing is, the file system is not mounted: that
    is Unreachable, and neither a store without objects nor a folder to be made on the disk beneath.
    Unless this process has seen it on the very file system that is there: then it was deleted.
    """

    root: Path
    prefix: str = ""
    in_use: bool = False

    @property
    def uri(self) -> str:
        return str(self._folder)

    @property
    def _folder(self) -> Path:
        return self.root / self.prefix

    def _reached(self) -> Path:
        """The folder of this store."""
        if self.in_use:
            _check_mounted(self.root)
        return self._folder

    def _path(self, key: str) -> Path:
        if any(part.startswith(TEMPORARY) for part in check_key(key).split("/")):
            raise ValueError(f"{key!r} is not a key: names that begin with {TEMPORARY} are taken")
        return self._reached() / key

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with explained("read", path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise _not_found(path) from None

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with explained("written", path):
            write_file(path, lambda file: _write(file, data))

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with explained("written", path):
            return write_file(path, lambda file: _write(file, data), exclusive=True)

    def upload(self, key: str, path: Path) -> None:
        target = self._path(key)
        with path.open("rb") as source, explained("written", target):
            write_file(target, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def download(self, key: str, path: Path) -> None:
        source_path = self._path(key)
        with explained("read", source_path):
            try:
                source = source_path.open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise _not_found(source_path) from None
        with source, explained("written", path):
            write_file(path, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        folder, _, beginning = check_prefix(prefix).rpartition("/")
        start = self._path(folder) if folder else self._reached()
        above = f"{folder}/" if folder else ""
        with explained("listed", start):
            return sorted(_walk(start, above, beginning), key=lambda found: found.key)

    def children(self, prefix: str = "") -> list[str]:
        folder = self._path(prefix.removesuffix("/")) if prefix else self._reached()
        with explained("listed", folder):
            return sorted(
                entry.name
                for entry in _entries(folder)
                if entry.is_file() or next(_walk(Path(entry.path), "", ""), None)
            )

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with explained("read", path):
            return path.is_file()

    def delete(self, keys: Sequence[str]) -> None:
        folders = set()
        for path in [self._path(key) for key in keys]:
            with (
                explained("deleted", path),
                suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError),
            ):
                path.unlink()
                folders.add(path.parent)
        for folder in sorted(folders, reverse=True):
            self._tidy(folder)

    def sub(self, prefix: str) -> Store:
        prefix = check_key(prefix.removesuffix("/"))
        below = f"{self.prefix}/{prefix}" if self.prefix else prefix
        return DirectoryStore(self.root, below, self.in_use)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def _tidy(self, folder: Path) -> None:
        """Removes the folder and those above it, up to the root, where they hold nothing more."""
        while folder != self.root and _prune(folder):
            folder = folder.parent


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _check_mounted(root: Path) -> None:
    """Raises Unreachable where there is nothing at all, on another file system than before."""
    with explained("read", root):
        try:
            with os.scandir(root) as entries:
                if next(entries, None) is not None:
                    _SEEN_ON[root] = os.stat(root).st_dev
                    return
        except FileNotFoundError:
            pass
        nearest = next(folder for folder in (root, *root.parents) if folder.exists())
        if os.stat(nearest).st_dev == _SEEN_ON.get(root):
            return
    raise Unreachable(
        f"there is nothing in {root}, which is a store in use",
        mend="Check that the file system is mounted on this machine",
    )


def _not_found(path: Path) -> NotFound:
    return NotFound(f"there is no {path}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, without writes in progress; nothing where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(TEMPORARY)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk(folder: Path, above: str, beginning: str) -> Iterator[ObjectInfo]:
    """The objects below `folder` in names that begin so; `above` is put before their keys."""
    for entry in _entries(folder):
        if not entry.name.startswith(beginning):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{above}{entry.name}/", "")
            continue
        with suppress(FileNotFoundError):  # deleted meanwhile
            status = entry.stat()
            yield ObjectInfo(above + entry.name, status.st_size, status.st_mtime)


def _prune(folder: Path) -> bool:
    """Removes a folder that holds no object, and abandoned writes in it; says whether it is gone.

    Tidying is a courtesy: a folder that is in use, or cannot be removed, stays.
    """
    with suppress(OSError):
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _prune(Path(entry.path))
                elif (
                    entry.name.startswith(TEMPORARY)
                    and entry.stat().st_mtime < time.time() - _ABANDONED
                ):
                    os.unlink(entry.path)
        folder.rmdir()
        return True
    return False
