"""The nearest colour of a palette for every one of the 256^3 colours, exactly.

There is one definition of distance, used everywhere: with x = v / 127.5 - 1 and the centre c, both
in float64, `((x_r - c_r)^2 + (x_g - c_g)^2) + (x_b - c_b)^2`, added in this order; the nearest
centre is the one of least distance, and of equal ones the one of lowest index. Half precision or
the expanded `a^2 - 2ab + b^2` picks wrong colours.

`nearest_colors` computes it for a few colours. `build_table` computes it for all of them, in about
a second for 512 centres: the cube is cut into blocks, and in each block only the centres that can
be nearest there are compared. `load_table` keeps the table in the cache, one file per palette.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.storage.cache import cache_directory
from igpt.storage.files import write_file

_BLOCK = 16  # colours along one side of a block; 8 and 32 were measured to be slower
_COLORS = 256**3
_LEVELS = np.arange(256) / 127.5 - 1

log = logging.getLogger(__name__)


def nearest_colors(pixels: NDArray[np.uint8], centers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest centre of each of `pixels` uint8 [N, 3]: uint16 [N]."""
    red, green, blue = _squares(centers)
    found = np.empty(len(pixels), np.uint16)
    for start in range(0, len(pixels), 4096):
        part = pixels[start : start + 4096]
        distance = (red[part[:, 0]] + green[part[:, 1]]) + blue[part[:, 2]]
        found[start : start + 4096] = distance.argmin(axis=1)
    return found


def build_table(centers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest centre of colour (r, g, b) at `table[(r * 256 + g) * 256 + b]`: uint16 [2^24]."""
    squares = _squares(centers)
    blocks = [square.reshape(256 // _BLOCK, _BLOCK, -1) for square in squares]
    closest = [block.min(axis=1) for block in blocks]  # [blocks, V]
    farthest = [block.max(axis=1) for block in blocks]
    table = np.empty((256, 256, 256), np.uint16)
    for r, g, b in np.ndindex(*[256 // _BLOCK] * 3):
        least = closest[0][r] + closest[1][g] + closest[2][b]
        most = farthest[0][r] + farthest[1][g] + farthest[2][b]
        # The slack is far above rounding; a centre too many costs time, one too few an error.
        candidates = np.flatnonzero(least <= most.min() + 1e-9)
        cell = [slice(i * _BLOCK, (i + 1) * _BLOCK) for i in (r, g, b)]
        red, green, blue = (squares[axis][cell[axis]][:, candidates] for axis in range(3))
        table[tuple(cell)] = _nearest_in_block(red, green, blue, candidates)
    return table.reshape(-1)


def load_table(centers: NDArray[np.float32], digest: str) -> NDArray[np.uint16]:
    """`build_table`, from the cache where it holds one; memory-mapped and read-only then.

    A file whose checksum is wrong is built again. A cache that cannot be written is said once in
    the log, and the table stays in memory.
    """
    path = cache_directory() / "palettes" / f"{digest}.nearest-1"
    table = _read(path)
    if table is not None:
        return table
    built = build_table(centers)
    try:
        _write(path, built)
    except OSError as error:
        log.warning("the colour table is not kept: %s cannot be written (%s)", path, error)
        return built
    table = _read(path)
    return built if table is None else table


def _squares(
    centers: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Squared distances along each axis, float64 [256, V] for red, green and blue."""
    exact = centers.astype(np.float64)
    red, green, blue = ((_LEVELS[:, None] - exact[:, axis]) ** 2 for axis in range(3))
    return red, green, blue


def _nearest_in_block(
    red: NDArray[np.float64],
    green: NDArray[np.float64],
    blue: NDArray[np.float64],
    candidates: NDArray[np.int64],
) -> NDArray[np.uint16]:
    """The nearest of `candidates`, in rising order, for each colour of one block."""
    plane = np.ascontiguousarray((red[:, None] + green[None]).transpose(2, 0, 1))[..., None]
    line = np.ascontiguousarray(blue.T)
    best = plane[0] + line[0]
    nearest = np.full(best.shape, candidates[0], np.uint16)
    for place in range(1, len(candidates)):
        distance = plane[place] + line[place]
        closer = distance < best  # strictly: of equal ones the first stays
        np.copyto(best, distance, where=closer)
        nearest[closer] = candidates[place]
    return nearest


def _read(path: Path) -> NDArray[np.uint16] | None:
    """The table, if the file is there and whole: its numbers, then their sha256."""
    try:
        stored = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError):  # there is none, or (ValueError) it is empty
        return None
    table, checksum = stored[: 2 * _COLORS], stored[2 * _COLORS :]
    if hashlib.sha256(table.data).digest() != checksum.tobytes():
        log.warning("%s is damaged; the colour table is built again", path)
        return None
    return table.view("<u2")


def _write(path: Path, table: NDArray[np.uint16]) -> None:
    content = table.astype("<u2", copy=False).tobytes()
    checksum = hashlib.sha256(content).digest()
    write_file(path, lambda file: file.writelines((content, checksum)))
