"""The queue of a machine: first come, first served, at most `max_parallel` at once.

Each waiting or running supervisor holds a ticket: a file whose name sorts by time of arrival, under
an exclusive lock. The kernel drops the lock when the process dies, however it dies, so a slot
cannot leak. A ticket may run when fewer than `max_parallel` older tickets are still held.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Ticket:
    """A place in the queue, held by this process until it ends."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = name
        while True:
            self.path = folder / f"{time.time_ns():020d}-{name}.ticket"
            self._file = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if os.fstat(self._file).st_nlink:
                return
            os.close(self._file)  # taken for a forgotten one before the lock was ours

    def ahead(self) -> int:
        """How many older tickets of other names are held; forgotten ones are removed on the way.

        One of the same name belongs to an older attempt of the same run, which we supersede.
        """
        older = sorted(path for path in self.folder.glob("*.ticket") if path.name < self.path.name)
        return sum(held(path) for path in older if not path.name.endswith(f"-{self.name}.ticket"))

    def release(self) -> None:
        """Gives the place up."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)


def held(path: Path) -> bool:
    """Whether a living process holds the ticket; a forgotten one is removed."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(file)


@contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Holds an exclusive lock on a file for a block; yields False where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file)
