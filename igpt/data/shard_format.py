"""Shards as ordinary WebDataset tars that are also strided arrays.

A sample is two members, `<key>.tokens.npy` (uint16 [positions]) and `<key>.cls` (its label in a
fixed number of characters). All samples of a shard have members of the same sizes and USTAR
headers of one block, so sample i begins at byte i * stride: 4,096 bytes a sample at 32x32, 6,656 at
48x48, 10,240 at 64x64. Owner, mode and time are constant, so the same samples are the same bytes.
"""

import io
import tarfile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512
#: Characters of a label: enough for "-000000001" and any int32.
LABEL_DIGITS = 11


def geometry(positions: int) -> tuple[int, int, int]:
    """Bytes from a sample to the next, and from its start to its tokens and its label."""
    member = _npy(np.zeros(positions, "<u2"))
    data = -(-len(member) // _BLOCK) * _BLOCK
    label = _BLOCK + data + _BLOCK
    return label + _BLOCK, _BLOCK + len(member) - 2 * positions, label


def key(split: str, number: int) -> str:
    """The key of item `number` of a split: unique in the data set, and of one length."""
    return f"{split}-{number:010d}"


def open_shard(file: BinaryIO) -> tarfile.TarFile:
    """A shard that is written to an open file; closing it writes the end of the archive."""
    return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)


def append(shard: tarfile.TarFile, key: str, tokens: NDArray[np.uint16], label: int) -> None:
    """Writes one sample: tokens uint16 [positions], label int (-1 = none)."""
    members = {
        f"{key}.tokens.npy": _npy(tokens.astype("<u2", copy=False)),
        f"{key}.cls": f"{label:0{LABEL_DIGITS}d}".encode(),
    }
    for name, content in members.items():
        header = tarfile.TarInfo(name)  # of time 0 and owner 0
        header.size = len(content)
        shard.addfile(header, io.BytesIO(content))


def _npy(tokens: NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tokens, allow_pickle=False)
    return buffer.getvalue()
