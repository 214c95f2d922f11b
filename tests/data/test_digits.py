"""The quickstart's pictures are what their page says they are."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from igpt.data import open_source
from igpt.data.digits import VARIANTS, digits, photo_colors, write_digits


def test_every_picture_is_a_real_digit_in_two_photo_colours() -> None:
    images, labels, _ = digits()
    real = load_digits()
    for number in range(0, len(images), 997):
        digit = number // VARIANTS
        distinct, grey = real.images[digit], images[number].astype(float).sum(axis=-1)
        # One grey level, one colour; and a mixture changes with the level, always the same way.
        for level in np.unique(distinct):
            assert len(np.unique(images[number][distinct == level], axis=0)) == 1
        assert abs(np.corrcoef(distinct.ravel(), grey.ravel())[0, 1]) > 0.99
        assert labels[number] == real.target[digit]


def test_no_handwriting_is_in_two_splits() -> None:
    _, _, splits = digits()
    by_digit = [set(splits[i : i + VARIANTS]) for i in range(0, len(splits), VARIANTS)]
    assert all(len(one) == 1 for one in by_digit)
    sizes = {split: splits.count(split) // VARIANTS for split in set(splits)}
    assert sizes == {"train": 1294, "validation": 144, "test": 359}


def test_the_colours_come_from_the_photographs_dark_to_light() -> None:
    colors = photo_colors()
    assert colors.shape == (6, 3)
    assert (np.diff(colors @ [0.299, 0.587, 0.114]) > 0).all()


def test_the_folder_is_written_once_and_reads_as_a_source(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    assert write_digits(folder) == 14_376
    before = open_source(f"folder:{folder}").digest
    assert write_digits(folder, seed=1) == 14_376
    source = open_source(f"folder:{folder}")
    assert source.digest == before
    assert source.classes == tuple(str(digit) for digit in range(10))
