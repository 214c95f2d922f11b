"""The paper's crops: what is drawn, what is resized, and on what it depends."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from igpt.data.preprocessing import centre_crop, is_only_resized, random_crop
from tests.data.examples import noise


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    """A picture whose red grows downwards and whose green grows to the right, from 0 to 255."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, height)[:, None]
    image[..., 1] = np.linspace(0, 255, width)[None]
    return image


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = noise(1, 32)[0]
    assert np.array_equal(centre_crop(image, 32, "bicubic"), image)
    assert np.array_equal(random_crop(image, 32, "bicubic", seed=0, name="a", crop=3), image)


@pytest.mark.parametrize(("size", "resolution"), [(96, 32), (16, 32), (64, 48)])
def test_a_small_image_is_resized_straight(size: int, resolution: int) -> None:
    image = noise(1, size)[0]
    straight = np.array(
        Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BICUBIC)
    )
    assert is_only_resized(image)
    assert np.array_equal(centre_crop(image, resolution, "bicubic"), straight)


def test_a_small_oblong_image_keeps_its_proportions_and_its_middle() -> None:
    image = ramp(100, 200)
    found = centre_crop(image, 50, "box")
    assert abs(int(found[..., 1].mean()) - 127) <= 1
    assert int(found[0, 0, 1]) > 60
    assert int(found[0, 0, 0]) < 4


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (224, 224), (1000, 225)])
def test_the_centre_crop_is_the_middle_of_the_resized_image(height: int, width: int) -> None:
    image = ramp(height, width)
    scale = 224 / min(height, width)
    size = (round(width * scale), round(height * scale))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    square = resized.crop((left, top, left + 224, top + 224))
    expected = np.array(square.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    found = centre_crop(image, 32, "bicubic").astype(int)
    assert np.abs(found - expected).max() <= 1


def test_random_crops_cover_the_papers_range() -> None:
    image = ramp(300, 300)
    crops = [
        random_crop(image, 32, "box", seed=0, name="a", crop=crop).astype(int)
        for crop in range(200)
    ]
    # The share of the picture's side that a crop spans: 224 / 256 at most, 224 / 384 at least.
    spans = np.array([(crop[-1, 0, 0] - crop[0, 0, 0]) / 255 * 32 / 31 for crop in crops])
    assert 0.57 < spans.min() < 0.62
    assert 0.83 < spans.max() < 0.885
    tops = np.array([crop[0, 0, 0] for crop in crops])
    lefts = np.array([crop[0, 0, 1] for crop in crops])
    assert tops.min() < 10
    assert tops.max() > 80
    assert abs(np.corrcoef(tops - tops.mean(), lefts - lefts.mean())[0, 1]) < 0.5


def test_a_crop_depends_on_seed_name_and_number_alone() -> None:
    image = noise(1, 256)[0]

    def cut(**changed: object) -> bytes:
        given = {"seed": 0, "name": "a", "crop": 0, **changed}
        return random_crop(image, 32, "bicubic", **given).tobytes()  # type: ignore[arg-type]

    assert cut() == cut()
    assert len({cut(), cut(seed=1), cut(name="b"), cut(crop=1)}) == 4


def test_reduction_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((224, 224, 3), np.uint8)
    stripes[:, ::2] = 255
    for resampling in ("box", "bilinear", "hamming", "bicubic", "lanczos"):
        found = centre_crop(stripes, 32, resampling)  # type: ignore[arg-type]
        assert np.abs(found[4:-4, 4:-4].astype(int) - 127).max() < 40


def test_a_very_long_image_costs_no_more_than_its_crop() -> None:
    image = ramp(224, 100_000)
    assert centre_crop(image, 32, "bicubic").shape == (32, 32, 3)
