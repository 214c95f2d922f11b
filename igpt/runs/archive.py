"""Files as one archive, known by their content: what a code snapshot is made of.

The digest covers each path, whether it is executable or a link, and the content, and nothing else:
no times, no owners. An archive from a store is untrusted. It is read into memory, held against
its digest and every path and link in it checked before a byte of it reaches a folder.
"""

import gzip
import hashlib
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from igpt.errors import DataCorrupt, UserError
from igpt.storage.files import explained

# Modes as git writes them.
PLAIN = 0o100644
EXECUTABLE = 0o100755
LINK = 0o120000

#: What is made by running the code, in the very folders that hold it. Never part of a snapshot.
BYTECODE = "__pycache__"

TOTAL_LIMIT = 100_000_000  # bytes of all files
FILES_LIMIT = 20_000
_HEADERS = 4096  # bytes that one file takes in an archive besides its content, at most
_LEVEL = 6  # of zlib
_TRIES = 3  # at reading a file that somebody is writing


@dataclass(frozen=True)
class File:
    """One file of a snapshot. Bytes of a name that are no UTF-8 are kept as surrogates."""

    path: str  # relative, separated by slashes
    mode: int  # PLAIN, EXECUTABLE or LINK
    content: bytes  # of a link: what it points to


#: In the order of their paths, none twice.
Files = tuple[File, ...]


def to_bytes(path: str) -> bytes:
    """The path as the file system has it, whatever the locale."""
    return path.encode("utf-8", "surrogateescape")


def to_text(path: bytes) -> str:
    """The inverse of `to_bytes`."""
    return path.decode("utf-8", "surrogateescape")


def in_order(files: Iterable[File]) -> Files:
    """The files sorted by their paths."""
    return tuple(sorted(files, key=lambda file: to_bytes(file.path)))


def digest_of(files: Files) -> str:
    """sha256, in hex, over path, mode and sha256 of the content of each file."""
    whole = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.content).hexdigest()
        whole.update(b"%o %s %s\0" % (file.mode, content.encode(), to_bytes(file.path)))
    return whole.hexdigest()


def pack(files: Files) -> bytes:
    """The files as a gzipped tar. The same files make the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer,
        mode="w",
        format=tarfile.GNU_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    ) as tar:
        for file in files:
            member = tarfile.TarInfo(file.path)  # of time 0 and owner 0
            member.mode = file.mode & 0o777
            if file.mode == LINK:
                member.type = tarfile.SYMTYPE
                member.linkname = to_text(file.content)
                tar.addfile(member)
            else:
                member.size = len(file.content)
                tar.addfile(member, io.BytesIO(file.content))
    return gzip.compress(buffer.getvalue(), _LEVEL, mtime=0)


def files_in(archive: bytes, digest: str, name: str) -> Files:
    """The files of an archive; `name` is what an error calls it.

    Raises DataCorrupt unless they have the digest, and unless all of them stay inside the folder
    into which they are written.
    """
    mend = "Delete it and submit again: a submission stores what is not there"
    try:
        files = in_order(_members(_inflate(archive)))
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataCorrupt(f"{name} is damaged: {error}", mend=mend) from None
    found = digest_of(files)
    if found != digest:
        raise DataCorrupt(
            f"{name} is damaged: its files have the digest {found}",
            expected=f"the digest {digest}",
            mend=mend,
        )
    return files


def write(files: Files, folder: Path) -> None:
    """Writes the files into a new folder, read-only, so that nobody edits what runs.

    Times are those of now: what cleans a scratch disk of old files leaves them alone.
    """
    with explained("written", folder):
        folder.mkdir(parents=True)
        base = os.fsencode(folder)
        made = {b""}
        for file in files:
            name = to_bytes(file.path)
            parent = os.path.dirname(name)
            if parent not in made:
                os.makedirs(os.path.join(base, parent), exist_ok=True)
                made.add(parent)
            path = os.path.join(base, name)
            if file.mode == LINK:
                os.symlink(file.content, path)
                continue
            rights = 0o555 if file.mode == EXECUTABLE else 0o444
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(path, flags, rights), "wb") as target:
                target.write(file.content)


def read_file(folder: Path, path: str) -> File | None:
    """The file as it is now; None where there is none (any more).

    Raises UserError for what is neither a file nor a link, or is being written all the time.
    """
    place = os.path.join(os.fsencode(folder), to_bytes(path))
    with explained("read", folder / shown(path)):
        try:
            status = os.lstat(place)
            if stat.S_ISLNK(status.st_mode):
                return File(path, LINK, os.readlink(place))
            if stat.S_ISREG(status.st_mode):
                return File(path, *_read_whole(place))
        except (FileNotFoundError, NotADirectoryError):
            return None
    raise UserError(
        f"{folder / shown(path)} cannot be shipped",
        expected="a file or a symbolic link",
        mend="Move it elsewhere, or name it in .gitignore",
    )


def size_of(folder: Path, path: str) -> int | None:
    """Bytes of the file; None where there is none (any more)."""
    with explained("read", folder / shown(path)):
        try:
            return os.lstat(os.path.join(os.fsencode(folder), to_bytes(path))).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None


def holds(folder: Path, digest: str) -> bool:
    """Whether the folder holds exactly the files of this digest, but for their bytecode."""
    paths = list(walk(folder))
    if not folder.is_dir() or sum(size_of(folder, path) or 0 for path in paths) > TOTAL_LIMIT:
        return False
    found = [file for path in paths if (file := read_file(folder, path))]
    return digest_of(in_order(found)) == digest


def walk(folder: Path, leave: frozenset[str] = frozenset({BYTECODE})) -> Iterator[str]:
    """The paths of all that is no folder below `folder`; no link is followed.

    leave: names of folders to pass over.
    """
    pending = [b""]
    while pending:
        above = pending.pop()
        place = os.path.join(os.fsencode(folder), above)
        with explained("listed", Path(os.fsdecode(place))):
            try:
                entries = list(os.scandir(place))
            except FileNotFoundError:  # deleted meanwhile
                continue
        for entry in entries:
            path = os.path.join(above, entry.name)
            if not entry.is_dir(follow_symlinks=False):
                yield to_text(path)
            elif to_text(entry.name) not in leave:
                pending.append(path)


def leads_out(path: str, target: bytes) -> bool:
    """Whether a link at `path` might lead out of the folder of the files.

    Only the beginning of a target may go up. Then it can be told from the link alone, without
    asking what the names on its way are, which may be links as well.
    """
    up = 0
    parts = target.split(b"/")
    while parts and parts[0] in (b".", b".."):
        up += parts.pop(0) == b".."
    return target.startswith(b"/") or b".." in parts or up > path.count("/")


def shown(path: str) -> str:
    """The path in characters that a terminal and a record can hold."""
    return path if path.isprintable() else repr(path)[1:-1]


def _read_whole(place: bytes) -> tuple[int, bytes]:
    """Mode and content of a file, both of one moment."""
    for _ in range(_TRIES):
        with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            before = os.fstat(file.fileno())
            content = file.read()
            after = os.fstat(file.fileno())
        if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(content)):
            return (EXECUTABLE if after.st_mode & stat.S_IXUSR else PLAIN), content
    raise UserError(
        f"{os.fsdecode(place)} is written to while it is read",
        mend="Wait for what writes it to end, or name it in .gitignore where it is no code",
    )


def _inflate(archive: bytes) -> bytes:
    """The tar in the archive. Raises ValueError for one that is larger than any of ours."""
    limit = TOTAL_LIMIT + FILES_LIMIT * _HEADERS
    with gzip.GzipFile(fileobj=io.BytesIO(archive)) as compressed:
        content = compressed.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it holds more than {limit} bytes")
    return content


def _members(content: bytes) -> Iterator[File]:
    """The files of a tar. Raises ValueError for a member that no snapshot of ours has."""
    paths: set[str] = set()
    with tarfile.open(
        fileobj=io.BytesIO(content), mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for member in tar:
            path = member.name
            parts = path.split("/")
            if any(part in ("", ".", "..") for part in parts) or "\0" in path or path in paths:
                raise ValueError(f"a member is called {path!r}")
            paths.add(path)
            if member.type == tarfile.SYMTYPE:
                target = to_bytes(member.linkname)
                if not target or leads_out(path, target):
                    raise ValueError(f"the link {path!r} leads out, to {member.linkname!r}")
                yield File(path, LINK, target)
            elif member.type == tarfile.REGTYPE and not member.issparse():
                source = tar.extractfile(member)
                assert source is not None  # only for what is no regular file
                mode = EXECUTABLE if member.mode & stat.S_IXUSR else PLAIN
                yield File(path, mode, source.read())
            else:
                raise ValueError(f"{path!r} is neither a file nor a link")
    # Then no file is written through a link, nor into a folder that is one.
    above = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/"}
    if above & paths:
        raise ValueError(f"{min(above & paths)!r} is both a file and a folder")
