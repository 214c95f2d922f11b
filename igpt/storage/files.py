"""Files that appear whole or not at all, and what the system's errors mean for the user.

A file is written under a temporary name in its own folder, flushed to the disk and then renamed,
so that no reader sees half of it, whatever kills the writer. Temporary names begin with
`TEMPORARY` and belong to nobody else.
"""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from igpt.errors import IgptError, Unreachable, UserError

TEMPORARY = ".writing-"
_TRIES = 100

#: A network file system that has gone away, rather than a path that the user can mend.
_AWAY = {
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.ESHUTDOWN,  # Lustre's word for a client that was evicted
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_FULL = {errno.EDQUOT, errno.ENOSPC}
_MENDS = {
    errno.EACCES: "Give your account the right to it, or choose another place",
    errno.EDQUOT: "Free some of your quota, or choose another place",
    errno.EEXIST: "A file stands where a folder is needed; move it away, or choose another place",
    errno.EISDIR: "A folder stands where a file is needed; move it away, or choose another place",
    errno.ENOSPC: "Free some space on the disk, or choose another place",
    errno.ENOTDIR: "A file stands where a folder is needed; move it away, or choose another place",
    errno.EPERM: "Give your account the right to it, or choose another place",
    errno.EROFS: "The file system is mounted read-only; choose another place",
}


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turns an OSError into UserError, or Unreachable where the file system is away or full.

    `action` completes "PATH cannot be ...", as in "written".
    """
    try:
        yield
    except IgptError:  # Unreachable is a ConnectionError, and so an OSError itself
        raise
    except OSError as error:
        what = f"{path} cannot be {action}: {os.strerror(error.errno) if error.errno else error}"
        if error.errno in _AWAY:
            mend = "Check that the file system is mounted and its server answers"
            raise Unreachable(what, mend=mend) from error
        mend = _MENDS.get(error.errno or 0, "Check the path, or choose another place")
        if error.errno in _FULL:  # nobody's mistake, and it may pass
            raise Unreachable(what, mend=mend) from error
        raise UserError(what, mend=mend) from error


def reserve(path: Path) -> None:
    """Takes the disk's space for a file that is all holes, so that a full disk is an OSError here.

    Later, in a mapped page, it would be a SIGBUS that kills the process. Where the system or the
    file system cannot do that, nothing happens.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def write_file(path: Path, fill: Callable[[BinaryIO], None], *, exclusive: bool = False) -> bool:
    """Lets `fill` write a file that then appears at `path`; says whether it did.

    `exclusive` leaves a file that exists already as it is. Missing folders are made. Whatever goes
    wrong, nothing is left behind except by a process that is killed.
    """
    temporary, file = _open_temporary(path.parent)
    try:
        with file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            appeared = _link(temporary, path)
        else:
            os.replace(temporary, path)
            appeared = True
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    if appeared:
        _sync_folder(path.parent)
    return appeared


def _open_temporary(folder: Path) -> tuple[Path, BinaryIO]:
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    for _ in range(_TRIES):
        # Others tidy an empty folder away at any moment, until our file is in it.
        with suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            return temporary, temporary.open("x+b")
    folder.mkdir(parents=True, exist_ok=True)
    return temporary, temporary.open("x+b")


def _link(temporary: Path, path: Path) -> bool:
    """Gives the temporary file its name unless that is taken. Atomic on every file system."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # Over NFS the answer to a link that succeeded may be lost and the question asked again.
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise UserError(
                f"{path} cannot be created: its file system has no hard links, and without them"
                " two writers could both create it",
                mend="Choose another file system, or S3",
            ) from error
        raise
    return True


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    with suppress(FileNotFoundError):  # the object has been deleted again, and its folder with it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
