"""The queue of a machine: first come, first served, at most `max_parallel` at once.

Each waiting or running supervisor holds a ticket: a file whose name sorts by arrival, under an
exclusive lock. The kernel drops the lock when the process dies, however it dies, so a slot
cannot leak. A ticket may run when fewer than `max_parallel` older tickets are still held.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DIGITS = 12


class Ticket:
    """A place in the queue, held by this process until it ends."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        with locked(folder / "queue.lock"):
            numbers = [int(path.name[:_DIGITS]) for path in folder.glob("*.ticket")]
            number = max(numbers, default=0) + 1
            self.path = folder / f"{number:0{_DIGITS}d}-{name}.ticket"
            self._file = _open(self.path)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def ahead(self) -> int:
        """How many older tickets of other names are held; forgotten ones are removed on the way.

        One of the same name belongs to an older attempt of the same run, which we supersede.
        """
        with locked(self.folder / "queue.lock"):
            tickets = sorted(self.folder.glob("*.ticket"))
            older = [path for path in tickets if path.name < self.path.name]
            others = [path for path in older if path.name[_DIGITS + 1 :] != f"{self.name}.ticket"]
            return sum(held(path) for path in others)

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
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file for a block, waiting for it."""
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


@contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Holds an exclusive lock on a file for a block; yields False where another process has it."""
    file = _open(path)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
