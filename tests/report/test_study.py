"""What the report takes from records."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from igpt.data import ArraySource, Palette, open_dataset, write_shards
from igpt.errors import UserError
from igpt.evaluation.probe import ProbeRow, rows_to_json
from igpt.jobs.references import latest_pretraining
from igpt.report.content import TrainingCurve
from igpt.report.page import render
from igpt.report.study import _headlines, _related, collect, write_report
from igpt.runs import Run, create_run
from igpt.storage import Store


def finished(
    store: Store,
    job: str,
    time: float,
    inputs: dict[str, str] | None = None,
    result: dict[str, object] | None = None,
    **config: object,
) -> Run:
    """A run whose result is there, and of which the index says nothing."""
    run, _ = create_run(
        store,
        job=job,
        name=job,
        config={"time": time, **config},
        inputs=inputs or {},
        status=lambda run: run.status(),
    )
    run.record.create("result.json", json.dumps({"time": time, **(result or {})}).encode())
    return run


def data_of(store: Store, name: str, classes: int) -> dict[str, str]:
    """Writes images of so many classes, all in the same palette; their digest as an input."""
    images = np.random.default_rng(classes).integers(256, size=(12, 4, 4, 3)).astype(np.uint8)
    splits = ["train", "train", "validation", "test"] * 3
    write_shards(
        ArraySource(images, np.arange(12) % classes, splits, [str(n) for n in range(classes)]),
        store.sub(name),
        resolution=4,
        palette=Palette(np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)),
    )
    return {"data": open_dataset(store.sub(name)).digest}


def pretrained(store: Store) -> tuple[Run, str]:
    """A pretraining on `data/ten`, and the address of a model of it."""
    run = finished(
        store,
        "pretrain",
        1.0,
        data_of(store, "data/ten", classes=10),
        data="data/ten",
        model={"layers": 2, "width": 8},
        schedule={"steps": 3},
        batch={"global": 4},
    )
    return run, f"runs/{run.id}/checkpoints/step-000000003/attempt-1"


def probed(store: Store, model: str, data: str, inputs: dict[str, str]) -> None:
    """A probe of the model on that data."""
    choice = {"subject": "trained", "budget": "all", "layer": 1, "l2": 0.1, "chosen": "."}
    score = {"test_accuracy": 0.5, "test_std": None, "seeds": 1}
    result = {"selections": [{**choice, **score}]}
    run = finished(store, "probe", 2.0, inputs, result, model=model, data=data)
    rows = [
        ProbeRow(
            subject="trained",
            layer=layer,
            l2=0.1,
            budget="all",
            seed=0,
            validation_accuracy=0.4,
            test_accuracy=0.5,
            validation_labels=3,
            converged=True,
            gradient_norm=0.0,
            seconds=0.0,
        )
        for layer in range(3)
    ]
    run.record.put("probe/rows.json", rows_to_json(rows).encode())


def completed(store: Store, model: str, data: str, inputs: dict[str, str]) -> None:
    """Two completions of an image of the validation split of that data."""
    run = finished(store, "generate", 3.0, inputs, model=model, data=data, split="validation")
    for name, shape in {"originals": (1, 16), "completions": (1, 2, 16)}.items():
        content = io.BytesIO()
        np.save(content, np.zeros(shape, np.uint16))
        run.record.put(f"samples/{name}.npy", content.getvalue())


def test_chance_and_words_are_those_of_the_data_that_was_probed_and_completed(
    store: Store,
) -> None:
    run, model = pretrained(store)
    other = data_of(store, "data/two", classes=2)
    probed(store, model, "data/two", other)
    completed(store, model, "data/two", other)
    report = collect(run)
    assert report.probes is not None
    assert report.probes.classes == 2
    page = render(report)
    assert "Test accuracy in percent on data/two, another data set than the pretraining's;" in page
    assert "All splits are those of data/two, another data set than the" in page
    assert "top half of an image of the validation split of data/two." in page


def test_the_data_of_the_pretraining_is_not_named_again(store: Store) -> None:
    run, model = pretrained(store)
    own = run.spec().inputs
    probed(store, model, "data/ten", own)
    completed(store, model, "data/ten", own)
    report = collect(run)
    assert report.probes is not None
    assert report.probes.classes == 10
    page = render(report)
    assert "Test accuracy in percent;" in page
    assert "another data set" not in page
    assert ">chance<" in page
    assert "top half of an image of the validation split." in page


@pytest.mark.parametrize("now", ["gone", "another"])
def test_no_chance_is_drawn_where_the_probed_data_is_not_to_be_found(
    store: Store, now: str
) -> None:
    run, model = pretrained(store)
    probed(store, model, "data/two", data_of(store, "data/two", classes=2))
    store.delete([found.key for found in store.objects("data/two/")])
    if now == "another":
        data_of(store, "data/two", classes=3)
    report = collect(run)
    assert report.probes is not None
    assert report.probes.classes is None
    assert ">chance<" not in render(report)
    assert "top half" not in render(report)


def test_what_has_finished_is_found_without_an_index(store: Store) -> None:
    finished(store, "pretrain", 300.0)
    newest = finished(store, "pretrain", 500.0)
    trained = finished(store, "pretrain", 400.0)
    model = f"runs/{trained.id}/checkpoints/step-000000001/attempt-1"
    finished(store, "probe", 600.0, model=model)
    probe = finished(store, "probe", 700.0, model=model)
    assert latest_pretraining(store).id == newest.id
    assert {job: run.id for job, run in _related(trained).items()} == {"probe": probe.id}
    assert _related(newest) == {}


def test_a_place_without_a_name_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="cannot be written to /"):
        write_report(finished(store, "pretrain", 1.0), Path("/"))


def test_a_loss_that_is_no_number_is_said_to_be_none() -> None:
    (headline,) = _headlines(TrainingCurve((), ((10, 2.0), (20, math.nan))), None)
    assert headline.value == "not a number"
