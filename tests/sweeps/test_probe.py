"""What the sweep `probe` asks of its data, before the features cost anything."""

import re
import subprocess
import sys
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
from numpy.typing import NDArray

from igpt.data import ArraySource, Palette, write_shards
from igpt.errors import DataCorrupt, IgptError, NotFound, Unreachable, UserError
from igpt.jobs.base import Preparation
from igpt.jobs.explaining import explain
from igpt.model.config import ModelConfig
from igpt.model.interchange import export_huggingface
from igpt.model.transformer import ImageGPT
from igpt.runs import Run, create_run
from igpt.runs.failures import FailureClass
from igpt.storage import Store
from igpt.sweeps.layer import LAYERS, Trial, run_trial
from igpt.sweeps.probe import ProbeConfig, prepare
from igpt.sweeps.probe_trials import failure_of

CROPS = "random crops"
TWO = np.arange(40) % 2  # the labels; 20 are of train, 10 each of validation and test


def changed(places: slice, label: int) -> NDArray[np.int64]:
    """The labels, but for these."""
    labels = TWO.copy()
    labels[places] = label
    return labels


def facts(
    store: Store,
    budgets: list[object],
    size: int = 8,
    labels: NDArray[np.int64] = TWO,
    **options: object,
) -> dict[str, str]:
    """What a probe of images of this size, written with these options, says of itself."""
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(40, size, size, 3)).astype(np.uint8)
    palette = Palette.fit(images.reshape(-1, 3)[:2000], 16)
    splits = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    classes = ["a", "b", "c"][: max(1 + int(labels.max()), 0)]
    source = ArraySource(images, labels, splits=splits, classes=classes)
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


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (changed(slice(38, 40), -1), "2 of the 10 test images of data/x have no label.*without"),
        (changed(slice(0, 1), -1), "1 of the 20 train images of data/x have no label"),
        (changed(slice(0, 40), 0), "data/x has one class. Expected: .*at least two classes"),
        (changed(slice(0, 40), -1), "data/x has no classes"),
        (changed(slice(0, 20), 0), "train split of data/x has no image of class 'b'"),
        (changed(slice(30, 31), 2), "train split of data/x has no image of class 'c'.*in train"),
    ],
)
def test_labels_to_learn_nothing_from_are_refused_before_anything_runs(
    store: Store, labels: NDArray[np.int64], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        facts(store, ["all"], labels=labels)


@pytest.mark.parametrize(
    ("errors", "kind", "failure", "said"),
    [
        ([ValueError("odd")], IgptError, FailureClass.CRASH, "cause: ValueError: odd"),
        ([MemoryError("large")], MemoryError, FailureClass.OUT_OF_MEMORY, "cause: .*large"),
        (
            [ValueError("odd"), Unreachable("away")],
            Unreachable,
            FailureClass.STORAGE,
            "2 of 7.*: away",
        ),
        ([Unreachable("away"), DataCorrupt("torn")], DataCorrupt, FailureClass.CORRUPT, "torn"),
        ([DataCorrupt("torn"), NotFound("gone")], UserError, FailureClass.USER_ERROR, "gone"),
    ],
)
def test_the_failure_of_a_layer_keeps_its_class(
    errors: list[Exception], kind: type[Exception], failure: FailureClass, said: str
) -> None:
    raised = failure_of(errors, f"{len(errors)} of 7 layers failed")
    assert type(raised) is kind
    assert explain(raised)[1] is failure
    assert re.search(said, str(raised))


def test_a_layer_waits_for_a_store_that_is_away(root: Store, tmp_path: Path) -> None:
    run, _ = create_run(root, job="probe", name="p", config={}, inputs={}, status=Run.status)
    trial = Trial("raw pixels", 0, None, "data/digits", run.uri, (1.0,), ("all",), (1,))
    here, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    here.rename(elsewhere)
    here.mkdir()  # as where a file system is not mounted

    def mount() -> None:
        here.rmdir()
        elsewhere.rename(here)

    timer = Timer(1.0, mount)
    timer.start()
    run_trial(trial)
    timer.join()
    assert run.record.children("probe/layers") == [trial.key]


def test_a_layer_is_fitted_without_torch(root: Store) -> None:
    run, _ = create_run(root, job="probe", name="p", config={}, inputs={}, status=Run.status)
    trial = Trial("raw pixels", 0, None, "data/digits", run.uri, (1.0,), (40,), (1,))
    code = (
        "import sys\n"
        "from igpt.sweeps.layer import Trial, run_trial\n"
        f"run_trial({trial!r})\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert run.record.exists(f"{LAYERS}/{trial.key}")
