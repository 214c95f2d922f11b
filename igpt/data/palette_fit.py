"""The palette of a data set that brings none: fitted once, to the source, and then kept."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.data.images import BadImage
from igpt.data.index import PALETTE
from igpt.data.palette import Palette
from igpt.data.preprocessing import Filter, centre_crop
from igpt.data.sources import Source
from igpt.data.stores import as_store
from igpt.errors import UserError
from igpt.storage import Store
from igpt.storage.pieces import PIECES_SECONDS, await_pieces

_TELL = 64  # images from one word of progress to the next


def palette_for(
    source: Source,
    uri: str | Path | Store,
    *,
    resolution: int,
    colors: int = 512,
    seed: int = 0,
    images: int = 10_000,
    resampling: Filter = "bicubic",
    rank: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    timeout: float = PIECES_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Palette:
    """The palette of the data set at `uri`: the one that lies there, or else one fitted now.

    It is fitted to at most `images` training images spread evenly over the source, as evaluation
    would see them, and laid down for `write_shards` by an exclusive create. So all workers, and a
    job that is started again, use the same one even if their arithmetic differs in the last bit.
    Rank 0 fits it and the others wait. `progress(done, total)` counts the images that were read;
    what it raises ends the work.

    Raises UserError where a palette of another number of colours lies there, and IgptError where
    rank 0 has laid down none for `timeout` seconds.
    """
    store = as_store(uri)
    if rank != 0:
        await_pieces(
            [PALETTE],
            lambda: [PALETTE] if store.exists(PALETTE) else [],
            what=f"{store.uri}: files",
            tick=lambda: progress(0, images),
            timeout=timeout,
            clock=clock,
            sleep=sleep,
        )
    elif not store.exists(PALETTE):
        pixels = _pixels(source, resolution, images, resampling, progress)
        store.create(PALETTE, Palette.fit(pixels, colors, seed).to_bytes())
    palette = Palette.from_bytes(store.get(PALETTE), PALETTE)
    if palette.colors != colors:
        raise UserError(
            f"{store.uri}/{PALETTE} has {palette.colors} colours, not {colors}",
            mend="Give the same input to go on with it, or another place for the new data set",
        )
    return replace(palette, made=made_by_fit(colors, images))


def made_by_fit(colors: int, images: int) -> str:
    """`Palette.made` of one that was fitted; the rest that decides it is in the claim anyway."""
    return f"{colors} colours fitted to at most {images} images"


def _pixels(
    source: Source,
    resolution: int,
    images: int,
    resampling: Filter,
    progress: Callable[[int, int], None],
) -> NDArray[np.uint8]:
    """Pixels uint8 [N, 3] of an even sample of the training images."""
    numbers = [i for i in range(len(source)) if source.record(i).split == "train"]
    step = max(1.0, len(numbers) / images)
    pixels = []
    total = min(images, len(numbers))
    for place in range(total):
        if place % _TELL == 0:
            progress(place, total)
        try:
            image = source.image(numbers[int(place * step)])
        except BadImage:
            continue  # the writer counts it
        pixels.append(centre_crop(image, resolution, resampling).reshape(-1, 3))
    if not pixels:
        raise UserError("the source has no training images to fit a palette to")
    progress(total, total)
    return np.concatenate(pixels)
