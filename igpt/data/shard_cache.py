"""The shards of a data set as files of this machine, each proven by its sha256 before it is used.

Where the store is a directory its files are read in place. Otherwise whole shards are fetched into
a folder that all processes of the machine share: one of them fetches a shard while the others wait
for its lock, and it appears under its name only once its digest is right. The folder is bounded;
the shards that have not been opened for longest make room.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.data.index import Shard
from igpt.errors import DataCorrupt, NotFound
from igpt.storage import Store
from igpt.storage.cache import cache_directory
from igpt.storage.files import explained

#: A file that has been arriving for a day (in seconds) belongs to a process that was killed.
_ABANDONED = 24 * 3600.0

log = logging.getLogger(__name__)


class ShardCache:
    """Finds the file of a shard. Safe to use from several threads and processes.

    `most_bytes` bounds the folder, but for the shards that are just arriving; None means half of
    what it holds and its disk has free.
    """

    def __init__(self, store: Store, most_bytes: int | None = None) -> None:
        self._store = store
        self._folder = cache_directory() / "shards"
        self._most_bytes = most_bytes
        self._proven: set[str] = set()  # digests that this process has seen to be right

    def missing(self, shard: Shard) -> bool:
        """Whether the shard has to be fetched before it can be read."""
        return self._store.local_path(shard.name) is None and not self._path(shard).exists()

    def file(self, shard: Shard) -> Path:
        """The shard as a file. Raises DataCorrupt where its bytes are not those written."""
        with self._held(shard) as path:
            return path

    def map(self, shard: Shard) -> NDArray[np.uint8]:
        """The bytes of the shard, memory-mapped; they stay if the file goes. Raises as `file`."""
        with self._held(shard) as path, explained("read", path):
            try:
                return np.memmap(path, np.uint8, mode="r")
            except FileNotFoundError:  # it was proven before, and is gone since
                raise self._corrupt(shard) from None

    @contextmanager
    def _held(self, shard: Shard) -> Iterator[Path]:
        """The shard's file, which nobody removes to make room meanwhile."""
        path = self._store.local_path(shard.name)
        if path is not None:
            if shard.sha256 not in self._proven and not _is_whole(path, shard):
                raise self._corrupt(shard)
            self._proven.add(shard.sha256)
            yield path
            return
        path = self._path(shard)
        with explained("written", path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")):
                self._fetch(shard, path)
                self._proven.add(shard.sha256)
                yield path

    def _path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.sha256}.tar"

    def _fetch(self, shard: Shard, path: Path) -> None:
        """Makes `path` hold the shard; the caller has its lock."""
        if path.exists():
            if shard.sha256 in self._proven or _is_whole(path, shard):
                os.utime(path)  # it was used now; `_make_room` goes by it
                return
            log.warning("the cached copy of %s is damaged and fetched again", shard.name)
            path.unlink()
        self._make_room(shard.bytes)
        arriving = path.with_suffix(".arriving")
        for _ in range(2):  # a second time, for what the network may have done to the first
            try:
                self._store.download(shard.name, arriving)
            except NotFound:
                raise self._corrupt(shard) from None
            if _is_whole(arriving, shard):
                arriving.replace(path)
                return
            arriving.unlink()
        raise self._corrupt(shard)

    def _make_room(self, needed: int) -> None:
        held = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                held.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in held)
        most = self._most_bytes
        if most is None:
            most = (total + shutil.disk_usage(self._folder).free) // 2
        for modified, size, path in sorted(held):
            if total + needed <= most:
                return
            if path.suffix == ".tar":
                removed = _remove_unless_locked(path)
            else:  # a lock, or what is arriving; unless whoever fetched it was killed
                removed = path.suffix != ".lock" and time.time() - modified > _ABANDONED
                if removed:
                    path.unlink(missing_ok=True)
            total -= size if removed else 0

    def _corrupt(self, shard: Shard) -> DataCorrupt:
        return DataCorrupt(
            f"shard {self._store.uri}/{shard.name} is not what was written there",
            expected=f"{shard.bytes} bytes of sha256 {shard.sha256}",
            mend=f"Delete it, parts/{Path(shard.name).stem}.json and index.json, and run the shard "
            "job again: that shard alone is written anew",
        )


def _is_whole(path: Path, shard: Shard) -> bool:
    with explained("read", path):
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != shard.bytes:
                    return False
                return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
        except FileNotFoundError:
            return False


def _remove_unless_locked(path: Path) -> bool:
    """Removes a shard that nobody is opening now; whoever has it mapped keeps its bytes."""
    with path.with_suffix(".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink(missing_ok=True)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock that goes with the process, however it ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
