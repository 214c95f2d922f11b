"""The folder that a node's ranks share with their parent: for checkpoints on their way, and signs.

It goes with its parent, unless that is killed. A checkpoint of gigabytes would then fill the disk
of a node, so the next parent there removes what nobody holds any more.
"""

import fcntl
import glob
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("igpt")


@contextmanager
def scratch_folder() -> Iterator[tuple[Path, int]]:
    """A new folder in TMPDIR and its hold, a file descriptor for every process that needs it.

    Whoever has the descriptor keeps the folder from being taken for a dead parent's. Not a
    TemporaryDirectory: Python would remove that when this process is ended from outside, under the
    feet of ranks that are saving.
    """
    remove_abandoned()
    folder, hold = _held()
    try:
        yield folder, hold
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(hold)


def remove_abandoned() -> None:
    """Removes this user's scratch folders on this host that no living process holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{glob.escape(_prefix())}{'?' * 8}"):
        with suppress(OSError):
            hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(hold).st_uid == os.getuid():
                    fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    log.info("removing %s, left by ranks whose parent was killed", folder)
                    shutil.rmtree(folder)
            finally:
                os.close(hold)


def _held() -> tuple[Path, int]:
    """A new folder that nobody takes for abandoned, as may happen before it is held."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix()))
        with suppress(FileNotFoundError):
            hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks: there nobody removes any
                fcntl.flock(hold, fcntl.LOCK_EX)
            if folder.exists():
                return folder, hold
            os.close(hold)


def _prefix() -> str:
    """With the host: a lock may be a host's own affair, and TMPDIR shared by several."""
    return f"igpt-ranks-{socket.gethostname().partition('.')[0]}-"
