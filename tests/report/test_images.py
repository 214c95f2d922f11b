"""Images are enlarged by whole pixels and come back from PNG as they went in."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igpt.report.images import enlarge, hatch, png_address
from tests.report.example import picture


def decoded(address: str) -> NDArray[np.uint8]:
    head, data = address.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_pixels_are_repeated_and_never_blended() -> None:
    image = picture(3)
    large = enlarge(image)
    assert large.shape == (128, 128, 3)
    for row, column in np.ndindex(4, 4):
        np.testing.assert_array_equal(large[row::4, column::4], image)


def test_the_smaller_side_reaches_128_and_large_images_stay() -> None:
    assert enlarge(np.zeros((48, 64, 3), np.uint8)).shape == (144, 192, 3)
    assert enlarge(np.zeros((200, 130, 3), np.uint8)).shape == (200, 130, 3)


def test_only_what_is_hidden_is_hatched() -> None:
    image = picture(4)
    hidden = np.zeros((32, 32), dtype=bool)
    hidden[16:, :] = True
    covered = hatch(image, hidden)
    np.testing.assert_array_equal(covered[:64], enlarge(image)[:64])
    shades = np.unique(covered[64:].reshape(-1, 3), axis=0)
    assert len(shades) == 2
    assert all(len(set(shade)) == 1 for shade in shades.tolist())  # greys


def test_png_keeps_every_pixel() -> None:
    image = picture(5)
    np.testing.assert_array_equal(decoded(png_address(image)), image)
    np.testing.assert_array_equal(decoded(png_address(image[:, ::-1])), image[:, ::-1])
