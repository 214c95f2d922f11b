"""How an image becomes R x R pixels, before the palette.

Chen et al., "Generative Pretraining from Pixels" (ICML 2020), section 3.1, for ImageNet. Training:
the shorter side is resized to a whole number drawn from [256, 384], and a random 224 x 224 square
is cut out. Evaluation: the shorter side becomes 224, and the square is the middle one. Then the
square is reduced to R x R. The crop comes first: to squash the whole picture gives other data.

The filter was never published; here it is one of Pillow's, which all average over the area that a
pixel covers when they reduce (antialiasing), and it is recorded.

An image whose shorter side is below 224 would have to be enlarged to be cropped so. It is not: its
middle square is resized straight to R x R, for training too, so that a CIFAR image stays as it is.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igpt.config import Strict
from igpt.data.randomness import uniforms

CROP = 224
SHORTER_SIDE = (256, 384)

Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]


class Preprocessing(Strict):
    """What was done to the images of a data set, as its index records it."""

    resolution: int
    resampling: Filter
    train: Literal["random crop", "centre crop"]
    evaluation: Literal["centre crop"] = "centre crop"
    crop: int = CROP
    train_shorter_side: tuple[int, int] = SHORTER_SIDE
    evaluation_shorter_side: int = CROP
    only_resized: int  # samples whose image was too small to be cropped
    transparency: Literal["over white"] = "over white"


def is_only_resized(image: NDArray[np.uint8]) -> bool:
    """Whether `image` [H, W, 3] is too small for the paper's crops, so that none is random."""
    return bool(min(image.shape[:2]) < CROP)


def centre_crop(image: NDArray[np.uint8], resolution: int, resampling: Filter) -> NDArray[np.uint8]:
    """The image as evaluation sees it: uint8 [H, W, 3] to uint8 [R, R, 3]."""
    if is_only_resized(image):
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = Image.fromarray(image[top : top + side, left : left + side])
    else:
        height, width = _resized(image, CROP)
        top, left = (height - CROP) // 2, (width - CROP) // 2
        square = _cut(image, (height, width), top, left, resampling)
    return _reduce(square, resolution, resampling)


def random_crop(
    image: NDArray[np.uint8],
    resolution: int,
    resampling: Filter,
    *,
    seed: int,
    name: str,
    crop: int,
) -> NDArray[np.uint8]:
    """The image as training sees it: uint8 [H, W, 3] to uint8 [R, R, 3].

    The draw depends on `seed`, the image's `name` in its source and the number of the `crop`
    alone, so that it does not matter which worker makes it, or when.
    """
    if is_only_resized(image):
        return centre_crop(image, resolution, resampling)
    side, down, right = uniforms(3, "crop", seed, name, crop)
    low, high = SHORTER_SIDE
    height, width = _resized(image, low + int(side * (high - low + 1)))
    top, left = int(down * (height - CROP + 1)), int(right * (width - CROP + 1))
    return _reduce(_cut(image, (height, width), top, left, resampling), resolution, resampling)


def _resized(image: NDArray[np.uint8], shorter: int) -> tuple[int, int]:
    """Height and width once the shorter side has become `shorter`."""
    height, width = image.shape[:2]
    if height <= width:
        return shorter, round(width * shorter / height)
    return round(height * shorter / width), shorter


def _cut(
    image: NDArray[np.uint8], size: tuple[int, int], top: int, left: int, resampling: Filter
) -> Image.Image:
    """The square at (top, left) of the image resized to `size`, without the rest being made."""
    down, right = image.shape[0] / size[0], image.shape[1] / size[1]
    box = (left * right, top * down, (left + CROP) * right, (top + CROP) * down)
    return Image.fromarray(image).resize((CROP, CROP), _filter(resampling), box)


def _reduce(square: Image.Image, resolution: int, resampling: Filter) -> NDArray[np.uint8]:
    return np.array(square.resize((resolution, resolution), _filter(resampling)))


def _filter(resampling: Filter) -> Image.Resampling:
    return Image.Resampling[resampling.upper()]
