"""What a probe of a trained network is measured against.

Raw pixels are here. The other baseline, the same network untrained, is `ImageGPT(config, seed=s)`
with the seed of its training: the weights that the training began with.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from igpt.data import Dataset

#: Samples that are decoded at once.
_BATCH = 8192


def raw_pixels(data: "Dataset", split: str) -> NDArray[np.float32]:
    """The images that the tokens of a split show, as features: float32 [N, R*R*3] in [-1, 1].

    They are what the network sees, so already quantised to the palette. Raises NotFound for a split
    that there is not.
    """
    samples, resolution = data.samples(split), data.index.resolution
    palette = data.palette()
    pixels = np.empty((samples, resolution * resolution * 3), np.float32)
    for start in range(0, samples, _BATCH):
        numbers = np.arange(start, min(start + _BATCH, samples))
        images = palette.decode(data.tokens(split, numbers), size=resolution)
        pixels[numbers] = images.reshape(len(numbers), -1)
    pixels /= 127.5
    pixels -= 1
    return pixels
