"""What a recipe may call a model."""

from pathlib import Path

import pytest

from igpt.jobs.references import settle_model
from igpt.runs import events as ev
from igpt.runs.record import open_run
from igpt.storage import Store

STEP = "runs/tiny-1a2b3c4d/checkpoints/step-000000040"


@pytest.fixture
def trained(store: Store) -> Store:
    """A store with a run whose step 40 two attempts have committed and a third has not."""
    open_run(store, "tiny-1a2b3c4d").event(ev.SUBMITTED, writer="client", attempt=1)
    for attempt in (2, 10):
        store.put(f"{STEP}/attempt-{attempt}/COMMITTED", b"")
    store.put(f"{STEP}/attempt-11/config.json", b"")
    return store


@pytest.mark.parametrize("end", ["", "/"])
def test_a_steps_folder_means_its_newest_committed_attempt(trained: Store, end: str) -> None:
    model, run = settle_model(trained, STEP + end, Path("/"))
    assert model == f"{STEP}/attempt-10"
    assert run is not None
    assert run.id == "tiny-1a2b3c4d"
    address = f"{trained.uri}/{STEP}"
    assert settle_model(trained, address + end, Path("/")) == (f"{address}/attempt-10", None)


def test_an_attempts_folder_is_taken_as_given(trained: Store) -> None:
    assert settle_model(trained, f"{STEP}/attempt-2", Path("/"))[0] == f"{STEP}/attempt-2"
