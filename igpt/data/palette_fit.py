"""The palette of a data set that brings none: fitted once, to the source, and then kept."""

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


def palette_for(
    source: Source,
    uri: str | Path | Store,
    *,
    resolution: int,
    colors: int = 512,
    seed: int = 0,
    images: int = 10_000,
    resampling: Filter = "bicubic",
) -> Palette:
    """The palette of the data set at `uri`: the one that lies there, or else one fitted now.

    It is fitted to at most `images` training images spread evenly over the source, as evaluation
    would see them, and laid down for `write_shards` by an exclusive create. So all workers, and a
    job that is started again, use the same one even if their arithmetic differs in the last bit.

    Raises UserError where a palette of another number of colours lies there.
    """
    store = as_store(uri)
    if not store.exists(PALETTE):
        fitted = Palette.fit(_pixels(source, resolution, images, resampling), colors, seed)
        store.create(PALETTE, fitted.to_bytes())
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


def _pixels(source: Source, resolution: int, images: int, resampling: Filter) -> NDArray[np.uint8]:
    """Pixels uint8 [N, 3] of an even sample of the training images."""
    numbers = [i for i in range(len(source)) if source.record(i).split == "train"]
    step = max(1.0, len(numbers) / images)
    pixels = []
    for place in range(min(images, len(numbers))):
        try:
            image = source.image(numbers[int(place * step)])
        except BadImage:
            continue  # the writer counts it
        pixels.append(centre_crop(image, resolution, resampling).reshape(-1, 3))
    if not pixels:
        raise UserError("the source has no training images to fit a palette to")
    return np.concatenate(pixels)
