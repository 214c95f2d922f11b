"""An image folder, and a tar or zip of one, as sources.

An archive is never extracted: its members are read in place. A compressed tar is first unpacked as
a whole, still a tar, into an unnamed temporary file that goes with the process. What is not a
regular file, and names that are absolute or hold `..`, are passed over.
"""

import bz2
import gzip
import hashlib
import json
import logging
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from igpt.data.images import BadImage, decode_image
from igpt.data.layout import read_layout
from igpt.data.sources import Record
from igpt.errors import UserError
from igpt.storage.files import explained

log = logging.getLogger(__name__)

#: The first bytes of what is compressed, and what opens it.
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"BZh": bz2.open,
}


class ListedSource:
    """Image files listed by path, whatever holds them.

    `sizes` gives the bytes of each file, `read` its content. The digest is that of names, classes,
    splits and sizes, not of the pixels: to read all of ImageNet only to name it would take hours.
    """

    def __init__(
        self, kind: str, where: str, sizes: dict[str, int], read: Callable[[str], bytes]
    ) -> None:
        layout = read_layout(sizes, where)
        if layout.ignored:
            count, first = len(layout.ignored), layout.ignored[0]
            log.warning("%s: %d files are not images and left out, as %s", where, count, first)
        self._kind = kind
        self._read = read
        self._records = layout.records
        self._ignored = len(layout.ignored)
        self.classes = layout.classes
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for record in layout.records:
            line = (record.name, record.label, record.split, sizes[record.name])
            digest.update(json.dumps(line).encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def record(self, number: int) -> Record:
        return self._records[number]

    def image(self, number: int) -> NDArray[np.uint8]:
        name = self._records[number].name
        return decode_image(self._read(name), name)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self._kind,
            "images": len(self),
            "splits": dict(sorted(Counter(record.split for record in self._records).items())),
            "ignored": self._ignored,
        }


def open_folder(path: str) -> ListedSource:
    """The images below a directory; links are followed. Raises UserError where it is none."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"source folder:{path} is not a folder", expected="a folder of images")
    sizes = dict(_walk(root))

    def read(name: str) -> bytes:
        with explained("read", root / name):
            return (root / name).read_bytes()

    return ListedSource("folder", str(root), sizes, read)


def open_tar(path: str) -> ListedSource:
    """The images in a tar, plain or compressed by gzip, xz or bzip2.

    Raises UserError where there is no such file, or it is not a whole tar.
    """
    archive = Path(path).expanduser()
    if not archive.is_file():
        raise UserError(f"source tar:{path} is not a file", expected="a tar of a folder of images")
    with explained("read", archive):
        try:
            file = _plain_tar(archive)
            members = _members(file)
        except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{archive} is not a whole tar: {error}") from None

    def read(name: str) -> bytes:
        offset, size = members[name]
        return os.pread(file.fileno(), size, offset)

    sizes = {name: size for name, (_, size) in members.items()}
    return ListedSource("tar", str(archive), sizes, read)


def open_zip(path: str) -> ListedSource:
    """The images in a zip. Raises UserError where it is not a file or not a whole zip."""
    archive = Path(path).expanduser()
    if not archive.is_file():
        raise UserError(f"source zip:{path} is not a file", expected="a zip of a folder of images")
    with explained("read", archive):
        try:
            packed = zipfile.ZipFile(archive)
        except zipfile.BadZipFile as error:
            raise UserError(f"{archive} is not a whole zip: {error}") from None
    members = {
        _plain_name(member.filename): member
        for member in packed.infolist()
        if not member.is_dir() and _is_inside(member.filename)
    }

    def read(name: str) -> bytes:
        try:
            return packed.read(members[name])
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise BadImage(f"{name} in {archive} cannot be read: {error}") from None

    sizes = {name: member.file_size for name, member in members.items()}
    return ListedSource("zip", str(archive), sizes, read)


def _plain_name(name: str) -> str:
    return name.removeprefix("./")


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """Name and size of each file below `root`; a folder reached twice by links is walked once."""
    seen: set[tuple[int, int]] = set()
    with explained("read", root):
        for folder, below, files in os.walk(root, followlinks=True, onerror=_raise):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                below.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            below.sort()  # so that it is the same one of two that is walked, everywhere
            above = os.path.relpath(folder, root)
            for file in files:
                path = os.path.join(folder, file)
                name = file if above == "." else f"{above}/{file}"
                with explained("read", Path(path)):
                    yield name, os.stat(path).st_size


def _raise(error: OSError) -> None:
    raise error


def _plain_tar(archive: Path) -> IO[bytes]:
    """The archive as an uncompressed file that can be read at any offset."""
    with archive.open("rb") as file:
        start = file.read(6)
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the source)
            with opener(archive, "rb") as packed:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
            unpacked.flush()
            return unpacked
    return archive.open("rb")


def _members(file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Offset and size of each regular file; of two of one name the later counts, as in tar.

    Raises tarfile.ReadError where it is cut or damaged: tarfile itself takes a header that it
    cannot read for the end, unless it is the first.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    members = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.isfile() or member.issparse() or not _is_inside(member.name):
                continue
            if member.offset_data + member.size > length:
                raise tarfile.ReadError("it ends in the middle of a file")
            members[_plain_name(member.name)] = (member.offset_data, member.size)
        end = tar.offset
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if mark.count(0) < tarfile.BLOCKSIZE:
        how = "damaged" if len(mark) == tarfile.BLOCKSIZE else "cut off"
        raise tarfile.ReadError(f"it is {how} at byte {end:,} of {length:,}")
    while block := file.read(1 << 20):
        if block.count(0) < len(block):
            raise tarfile.ReadError(
                f"more follows its end at byte {end:,} of {length:,}: it is damaged there, or "
                "several tars in one file"
            )
    return members
