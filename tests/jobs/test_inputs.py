"""What jobs check of their inputs at submission, before anything is started."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from igpt.config import load
from igpt.data import Palette, open_dataset
from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.jobs import find_job
from igpt.jobs.base import Preparation, Prepared
from igpt.model.config import ModelConfig
from igpt.model.interchange import export_huggingface
from igpt.model.transformer import ImageGPT
from igpt.storage import Store

JOBS = ("features", "generate", "probe")
SHAPE = ModelConfig(layers=3, width=8, heads=2, resolution=8, colors=16)
OTHER = Palette(np.random.default_rng(1).uniform(-1, 1, (16, 3)).astype(np.float32))


def prepared(
    root: Store, folder: Path, job: str, *overrides: str, dry_run: bool = True
) -> Prepared:
    found = find_job(job)
    config = load(found.config, "{}", "test.yaml", overrides)
    return found.prepare(config, Preparation(root, folder, workers=1, dry_run=dry_run))


def evaluated(root: Store, folder: Path, job: str, *overrides: str) -> Prepared:
    """An evaluation of the model in ./model on the digits."""
    budgets = ["budgets=[40]"] if job == "probe" else []
    return prepared(root, folder, job, "model=./model", "data=data/digits", *budgets, *overrides)


def exported(root: Store, folder: Path, shape: ModelConfig, palette: Palette | None = None) -> None:
    """A folder as transformers reads it; by default with the palette of the digits."""
    own = open_dataset(root.sub("data/digits")).palette()
    export_huggingface(ImageGPT(shape), palette or own, folder / "model")


def checkpoint(folder: Path, **config: Any) -> None:
    """The small files of one of our checkpoints."""
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps(config))
    (folder / "model/manifest.json").write_text("{}")


@pytest.mark.parametrize("job", JOBS)
def test_a_model_named_by_address_is_held_against_the_data(
    root: Store, tmp_path: Path, job: str
) -> None:
    exported(root, tmp_path, SHAPE)
    made = evaluated(root, tmp_path, job)
    assert "palette" not in made.facts
    assert made.need is not None
    assert made.need.inference is not None
    assert made.need.inference.memory.fixed["weights"] == 4 * SHAPE.parameters()

    shutil.rmtree(tmp_path / "model")
    exported(root, tmp_path, SHAPE, OTHER)
    with pytest.raises(UserError, match=f"model .*/model has {OTHER.digest[:12]}"):
        evaluated(root, tmp_path, job)

    shutil.rmtree(tmp_path / "model")
    exported(root, tmp_path, SHAPE.model_copy(update={"resolution": 4}))
    with pytest.raises(UserError, match="takes 4x4 images; data/digits holds 8x8"):
        evaluated(root, tmp_path, job)


@pytest.mark.parametrize("job", JOBS)
def test_a_checkpoint_named_by_address_is_held_against_the_data(
    root: Store, tmp_path: Path, job: str
) -> None:
    own = open_dataset(root.sub("data/digits")).index.palette_digest
    checkpoint(tmp_path, model=SHAPE.model_dump(), palette=own)
    assert "palette" not in evaluated(root, tmp_path, job).facts
    for config, problem in (
        ({"model": SHAPE.model_dump(), "palette": OTHER.digest}, "other one are other colours"),
        ({"model": SHAPE.model_dump() | {"resolution": 16}, "palette": own}, "16x16"),
        ({"model": SHAPE.model_dump() | {"colors": 32}}, "has 32 colours"),
    ):
        shutil.rmtree(tmp_path / "model")
        checkpoint(tmp_path, **config)
        with pytest.raises(UserError, match=problem):
            evaluated(root, tmp_path, job)


@pytest.mark.parametrize("job", JOBS)
def test_a_model_without_a_palette_is_taken_and_that_is_said(
    root: Store, tmp_path: Path, job: str
) -> None:
    exported(root, tmp_path, SHAPE)
    (tmp_path / "model/preprocessor_config.json").unlink()
    assert "not checked" in evaluated(root, tmp_path, job).facts["palette"]


def test_what_transformers_leaves_out_of_a_config_is_its_default(
    root: Store, tmp_path: Path
) -> None:
    """save_pretrained writes only what differs from them: 32x32 images in 512 colours."""
    exported(root, tmp_path, SHAPE)
    (tmp_path / "model/config.json").write_text('{"model_type": "imagegpt"}')
    with pytest.raises(UserError, match="takes 32x32 images"):
        evaluated(root, tmp_path, "probe", "layers=[24]")
    (tmp_path / "model/config.json").write_text(
        '{"model_type": "imagegpt", "n_positions": 64, "vocab_size": 17}'
    )
    assert evaluated(root, tmp_path, "probe", "layers=[24]").need is not None
    with pytest.raises(UserError, match=r"no layer 25 .* 0 to 24"):
        evaluated(root, tmp_path, "probe", "layers=[25]")


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (None, NotFound),
        ({}, DataCorrupt),
        ({"model": {"layers": 2}}, DataCorrupt),
        ({"model_type": "imagegpt", "n_positions": 63}, UserError),
        ({"model_type": "imagegpt", "n_head": 7}, UserError),
    ],
)
def test_a_folder_that_describes_no_model_is_refused(
    root: Store, tmp_path: Path, config: Any, error: type[Exception]
) -> None:
    if config is not None:
        checkpoint(tmp_path, **config)
    with pytest.raises(error, match="model"):
        evaluated(root, tmp_path, "features")


def test_images_are_completed_of_a_split_that_there_is(root: Store, tmp_path: Path) -> None:
    exported(root, tmp_path, SHAPE)
    assert "of test images" in evaluated(root, tmp_path, "generate").facts["draws"]
    assert "of train images" in evaluated(root, tmp_path, "generate", "split=train").facts["draws"]

    index = json.loads(root.get("data/digits/index.json"))
    del index["splits"]["test"]
    root.put("data/digits/index.json", json.dumps(index).encode())
    made = evaluated(root, tmp_path, "generate")
    assert made.config.model_dump()["split"] == "validation"
    assert "of validation images" in made.facts["draws"]
    with pytest.raises(
        UserError, match=r"no split 'test' .* Try split=validation, or completions=0"
    ):
        evaluated(root, tmp_path, "generate", "split=test")
    assert evaluated(root, tmp_path, "generate", "split=test", "completions=0").need is not None


def test_no_more_images_are_completed_than_there_are(root: Store, tmp_path: Path) -> None:
    exported(root, tmp_path, SHAPE)
    there = open_dataset(root.sub("data/digits")).samples("test")
    assert evaluated(root, tmp_path, "generate", f"completions={there}").need is not None
    with pytest.raises(UserError, match=f"has {there} test images.*at most {there}.*each"):
        evaluated(root, tmp_path, "generate", f"completions={there + 1}")


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 20, 30)).save(folder / name)


def sharded(root: Store, folder: Path, *overrides: str) -> Prepared:
    return prepared(root, folder, "shard", "source=folder:in", "output=data/x", *overrides)


def test_shard_says_how_many_images_are_in_which_split(root: Store, tmp_path: Path) -> None:
    images(tmp_path / "in", "Train/a/1.png", "Train/a/2.png", "dev/a/1.png")
    facts = sharded(root, tmp_path, "test=0.25").facts
    assert facts["splits"] == "train 2, validation 1, 0.25 of train held out for test"


def test_a_given_palette_is_read_and_identifies_the_work(root: Store, tmp_path: Path) -> None:
    images(tmp_path / "in", "1.png")
    OTHER.save(tmp_path / "palette.npy")
    first = sharded(root, tmp_path, "palette=palette.npy")
    assert first.inputs["palette"] == OTHER.digest
    assert first.facts["palette"] == f"16 colours, {OTHER.digest[:12]}"
    Palette(-OTHER.centers).save(tmp_path / "palette.npy")
    assert sharded(root, tmp_path, "palette=palette.npy").inputs != first.inputs
    (tmp_path / "palette.npy").write_text("no palette")
    with pytest.raises(UserError, match=r"palette\.npy is not a palette"):
        sharded(root, tmp_path, "palette=palette.npy")
    with pytest.raises(NotFound, match=r"gone\.npy"):
        sharded(root, tmp_path, "palette=./gone.npy")


def test_an_output_of_another_palette_is_refused_at_submission(root: Store, tmp_path: Path) -> None:
    images(tmp_path / "in", "1.png")
    OTHER.save(tmp_path / "palette.npy")
    given = sharded(root, tmp_path, "palette=palette.npy")
    claim = {**given.config.model_dump(include={"resolution", "samples_per_shard"})}
    claim |= {"crops": 1, "seed": 0, "validation_fraction": 0.1, "test_fraction": 0.0}
    claim |= {"augment": True, "resampling": "bicubic", "source": given.inputs["source"]}
    claim |= {"palette": OTHER.digest, "palette_made": "given"}
    root.put("data/x/options.json", json.dumps(claim).encode())
    assert sharded(root, tmp_path, "palette=palette.npy").inputs == given.inputs
    with pytest.raises(UserError, match="palette_made is 'given' there, '512 colours fitted"):
        sharded(root, tmp_path)
    Palette(-OTHER.centers).save(tmp_path / "palette.npy")
    with pytest.raises(UserError, match="palette is"):
        sharded(root, tmp_path, "palette=palette.npy")


def test_a_home_is_a_home_in_every_path(root: Store, tmp_path: Path) -> None:
    home = tmp_path / "home"  # HOME, of every test
    images(home / "cats", "1.png")
    OTHER.save(home / "palette.npy")
    made = sharded(root, tmp_path, "source=folder:~/cats", "palette=~/palette.npy").config
    assert made.model_dump()["source"] == f"folder:{home}/cats"
    assert made.model_dump()["palette"] == f"{home}/palette.npy"
    with pytest.raises(UserError, match="no such home"):
        sharded(root, tmp_path, "source=folder:~nobody-of-this-name/cats")
