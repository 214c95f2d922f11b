"""Pixels to tokens: the colour table against a search tree and against brute force.

Pictures are 32x32 crops of two photographs, the palette is fitted to them. The table is warm, as it
is for all but the first shard of a palette's life; what it costs to build is a figure of its own,
against a k-d tree that answers for all 256^3 colours.

Peers: `scipy.spatial.cKDTree` over the centres, float64, one worker; and numpy as in Hugging Face's
ImageGPT processor, float32 `a^2 - 2ab + b^2` by matrix product and argmin, in blocks that fit the
cache. All must choose colours that are equally near.

Predicted: encode 50 times as fast as the tree and 40 times as fast as brute force; the table built
15 times as fast as by the tree.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

import igpt
from benchmarks.harness import Figure, compare, timed
from benchmarks.photos import crops
from igpt.data.nearest import build_table

_BLOCK = 8192  # pixels that brute force compares at once


def figures(quick: bool, folder: Path) -> list[Figure]:
    """Encoding, and building the table."""
    images = crops(64 if quick else 32)
    pixels = images.reshape(-1, 3)
    palette = igpt.Palette.fit(pixels[::16], 8 if quick else 512)
    centers = palette.centers
    tree = cKDTree(centers.astype(np.float64))

    tokens = palette.encode(images).ravel()  # enough pixels to make the table
    _assert_as_near(pixels, centers, tokens, tree.query(_scaled(pixels))[1])
    _assert_as_near(pixels, centers, tokens, _brute_force(pixels, centers))
    encoded = compare(
        f"encode {len(images)} images in {palette.colors} colours",
        timed(lambda: palette.encode(images)),
        {
            "cKDTree": timed(lambda: tree.query(_scaled(pixels))),
            "numpy brute force": timed(lambda: _brute_force(pixels, centers)),
        },
        rounds=2 if quick else 7,
        amount=len(images),
        unit="images",
    )

    every = np.stack(np.unravel_index(np.arange(256**3), (256, 256, 256)), axis=1).astype(np.uint8)
    some = slice(0, None, 251)
    found = tree.query(_scaled(every[some]))[1]
    _assert_as_near(every[some], centers, build_table(centers)[some], found)
    built = compare(
        f"build the table of {palette.colors} colours",
        timed(lambda: build_table(centers)),
        {"cKDTree": timed(lambda: tree.query(_scaled(every)))},
        rounds=1 if quick else 3,
        warm_up=False,
    )
    return encoded + built


def _scaled(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colour values in [-1, 1], where the centres are."""
    return pixels / 127.5 - 1


def _brute_force(pixels: NDArray[np.uint8], centers: NDArray[np.float32]) -> NDArray[np.int64]:
    found = np.empty(len(pixels), np.int64)
    squares = np.square(centers).sum(axis=1)
    for start in range(0, len(pixels), _BLOCK):
        part = pixels[start : start + _BLOCK].astype(np.float32) / np.float32(127.5) - 1
        # A pixel's own square is the same for every centre.
        found[start : start + _BLOCK] = (squares - 2 * (part @ centers.T)).argmin(axis=1)
    return found


def _assert_as_near(
    pixels: NDArray[np.uint8],
    centers: NDArray[np.float32],
    ours: NDArray[np.uint16],
    theirs: NDArray[Any],
) -> None:
    """Both may choose another of two centres that are equally near, as far as float32 can tell."""
    first, second = (
        np.square(_scaled(pixels) - centers[chosen].astype(np.float64)).sum(axis=1)
        for chosen in (ours, theirs)
    )
    assert np.abs(first - second).max() < 1e-5
    assert np.all(first <= second + 1e-12)  # and ours is never the farther one
