"""What the sweep `probe` asks of its data, before the features cost anything."""

from pathlib import Path

import numpy as np
import pytest

from igpt.data import ArraySource, Palette, write_shards
from igpt.errors import UserError
from igpt.jobs.base import Preparation
from igpt.model.config import ModelConfig
from igpt.model.interchange import export_huggingface
from igpt.model.transformer import ImageGPT
from igpt.storage import Store
from igpt.sweeps.probe import ProbeConfig, prepare

CROPS = "random crops"


def facts(store: Store, budgets: list[object], size: int = 8, **options: object) -> dict[str, str]:
    """What a probe of images of this size, written with these options, says of itself."""
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(40, size, size, 3)).astype(np.uint8)
    palette = Palette.fit(images.reshape(-1, 3)[:2000], 16)
    splits = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    source = ArraySource(images, np.arange(40) % 2, splits=splits, classes=["a", "b"])
    write_shards(source, store.sub("data/x"), resolution=8, palette=palette, **options)  # type: ignore[arg-type]
    model = ImageGPT(ModelConfig(layers=1, width=8, heads=1, resolution=8, colors=16))
    export_huggingface(model, palette, f"{store.uri}/model")
    config = ProbeConfig(model=f"{store.uri}/model", data="data/x", budgets=budgets)  # type: ignore[arg-type]
    return prepare(config, Preparation(store, Path("/"), 1)).facts


def test_labels_of_several_crops_of_an_image_cannot_be_counted(store: Store) -> None:
    with pytest.raises(UserError, match=r"2 crops of each training image.*augment=false"):
        facts(store, [4, "all"], crops=2)


def test_all_labels_need_no_count(store: Store) -> None:
    assert "fits" in facts(store, ["all"], crops=2)


@pytest.mark.parametrize(
    ("size", "options", "random"),
    [(240, {}, True), (240, {"augment": False}, False), (8, {}, False)],
)
def test_random_crops_in_train_are_said(
    store: Store, size: int, options: dict[str, object], random: bool
) -> None:
    said = facts(store, [4], size, **options)
    assert (CROPS in said.get("train", "")) is random
