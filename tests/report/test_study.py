"""What the report takes from records."""

import json
import math
from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.jobs.references import latest_pretraining
from igpt.report.content import TrainingCurve
from igpt.report.study import _headlines, _related, write_report
from igpt.runs import Run, create_run
from igpt.storage import Store


def finished(store: Store, job: str, time: float, **config: object) -> Run:
    """A run whose result is there, and of which the index says nothing."""
    run, _ = create_run(
        store,
        job=job,
        name=job,
        config={"time": time, **config},
        inputs={},
        status=lambda run: run.status(),
    )
    run.record.create("result.json", json.dumps({"time": time}).encode())
    return run


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
