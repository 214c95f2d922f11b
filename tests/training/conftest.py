"""A tiny data set, and one thread: tiny networks are quickest so, whatever the machine does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from igpt.data.palette import Palette
from igpt.data.shards import write_shards
from igpt.data.sources import ArraySource

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """100 training and 30 validation images of 4x4 in 16 colours, with structure to learn."""
    draw = np.random.default_rng(0)
    left = draw.integers(256, size=(130, 4, 1, 3))
    images = np.clip(left + draw.integers(-20, 20, size=(130, 4, 4, 3)), 0, 255).astype(np.uint8)
    palette = Palette(draw.uniform(-1, 1, (16, 3)).astype(np.float32))
    splits = ["train"] * 100 + ["validation"] * 30
    folder: Path = tmp_path_factory.mktemp("data") / "tiny"
    write_shards(
        ArraySource(images, splits=splits),
        folder,
        resolution=4,
        palette=palette,
        samples_per_shard=40,
        augment=False,
    )
    return str(folder)
