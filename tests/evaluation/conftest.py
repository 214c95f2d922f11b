"""Small data sets and a small network, on one thread, whatever else the machine does."""

from pathlib import Path

import numpy as np
import pytest
import sklearn.linear_model  # noqa: F401  its threads are limited too once it is there
import threadpoolctl
import torch

from igpt.data import ArraySource, Dataset, Palette, open_dataset, write_shards
from igpt.model.config import ModelConfig
from igpt.model.transformer import ImageGPT

torch.set_num_threads(1)
threadpoolctl.threadpool_limits(1)

COLORS = 8
RESOLUTION = 4


@pytest.fixture
def images() -> np.ndarray:
    """60 images of 3 classes: uint8 [60, 4, 4, 3] in 8 colours; a class is mostly one of them."""
    generator = np.random.default_rng(0)
    corners = 255 * np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint8)
    places = generator.integers(0, COLORS, (60, RESOLUTION, RESOLUTION))
    mostly = generator.random(places.shape) < 0.5
    places[mostly] = (np.arange(60) % 3)[:, None, None].repeat(4, 1).repeat(4, 2)[mostly]
    return corners[places]


@pytest.fixture
def data(images: np.ndarray, tmp_path: Path) -> Dataset:
    """The images in shards: 30 train, 12 validation, 18 test."""
    splits = ["train"] * 30 + ["validation"] * 12 + ["test"] * 18
    source = ArraySource(images, np.arange(60) % 3, splits)
    palette = Palette.fit(images.reshape(-1, 3), COLORS)
    write_shards(
        source,
        tmp_path / "data",
        resolution=RESOLUTION,
        palette=palette,
        samples_per_shard=7,
        augment=False,
    )
    return open_dataset(tmp_path / "data")


@pytest.fixture
def model() -> ImageGPT:
    config = ModelConfig(layers=2, width=16, heads=2, resolution=RESOLUTION, colors=COLORS)
    return ImageGPT(config, seed=3)
