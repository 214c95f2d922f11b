"""Raw pixels as features."""

import numpy as np
import pytest

from igpt.data import Dataset
from igpt.errors import NotFound
from igpt.evaluation import raw_pixels


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pixels_are_the_images_in_the_order_of_the_data(
    images: np.ndarray, data: Dataset, split: str
) -> None:
    # The palette holds the 8 colours exactly, so the tokens have lost nothing.
    wanted = images[data.source_order(split)].reshape(-1, 48) / 127.5 - 1
    found = raw_pixels(data, split)
    assert found.dtype == np.float32
    assert found == pytest.approx(wanted, abs=1e-6)


def test_batches_change_nothing(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = raw_pixels(data, "train")
    monkeypatch.setattr("igpt.evaluation.baselines._BATCH", 7)
    assert (raw_pixels(data, "train") == whole).all()


def test_unknown_split_is_refused(data: Dataset) -> None:
    with pytest.raises(NotFound, match="no split 'dev'"):
        raw_pixels(data, "dev")
