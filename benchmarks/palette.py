"""Pixels to tokens: the colour table against a search tree and against brute force.

Pictures are 32x32 crops of two photographs, the palette has 512 colours fitted to them. The table
is warm, as it is for all but the first shard of a palette's life; what it costs to build is a
figure of its own, against a k-d tree that answers for all 256^3 colours.

Peers: `scipy.spatial.cKDTree` over the centres, float64, one worker; and numpy as in Hugging Face's
ImageGPT processor, float32 `a^2 - 2ab + b^2` by matrix product and argmin, in blocks that fit the
cache.

Predicted: encode 50 times as fast as the tree and 40 times as fast as brute force; the table built
15 times as fast as by the tree.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import igpt
from benchmarks.harness import Figure, compare, timed
from benchmarks.photos import crops
from igpt.data.nearest import build_table

_BLOCK = 8192  # pixels that brute force compares at once


def figures(quick: bool, folder: Path) -> list[Figure]:
    """Encoding and building the table."""
    from scipy.spatial import cKDTree

    images = crops(128 if quick else 32)
    pixels = images.reshape(-1, 3)
    palette = igpt.Palette.fit(pixels[::16], 16 if quick else 512)
    tree = cKDTree(palette.centers.astype(np.float64))
    table = build_table(palette.centers)
    palette.encode(np.zeros((65, 32, 32, 3), np.uint8))  # enough pixels to ask for the table

    def by_tree() -> NDArray[np.int64]:
        return tree.query(pixels / 127.5 - 1)[1]

    def by_force() -> NDArray[np.int64]:
        return _brute_force(pixels, palette.centers)

    tokens = palette.encode(images).ravel()
    assert np.array_equal(tokens, table[_packed(pixels)])
    for answer in (by_tree, by_force):
        _assert_as_near(pixels, palette.centers, tokens, answer)
    peers = {"cKDTree": timed(by_tree), "numpy brute force": timed(by_force)}
    encoded = compare(
        f"encode {len(images)} images in {palette.colors} colours",
        timed(lambda: palette.encode(images)),
        peers,
        rounds=2 if quick else 7,
        amount=len(images),
        unit="images",
    )
    every = _every_color(1 << (16 if quick else 24))
    _assert_as_near(every[:: 1 << 8], palette.centers, table[: len(every) : 1 << 8], None)
    built = compare(
        f"build the table of {palette.colors} colours",
        timed(lambda: build_table(palette.centers)),
        {f"cKDTree of {len(every):,} colours": timed(lambda: tree.query(every / 127.5 - 1))},
        rounds=1 if quick else 3,
        warm_up=False,
    )
    return encoded + built


def _brute_force(pixels: NDArray[np.uint8], centers: NDArray[np.float32]) -> NDArray[np.int64]:
    found = np.empty(len(pixels), np.int64)
    squares = np.square(centers).sum(axis=1)
    for start in range(0, len(pixels), _BLOCK):
        part = pixels[start : start + _BLOCK].astype(np.float32) / np.float32(127.5) - 1
        # The pixel's own square is the same for every centre.
        found[start : start + _BLOCK] = (squares - 2 * (part @ centers.T)).argmin(axis=1)
    return found


def _assert_as_near(
    pixels: NDArray[np.uint8],
    centers: NDArray[np.float32],
    tokens: NDArray[np.uint16],
    answer: Callable[[], NDArray[np.int64]] | None,
) -> None:
    ...
