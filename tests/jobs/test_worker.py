"""Which checkpoint an attempt starts from, and how long a rank that has to go may take."""

import math
import signal
from pathlib import Path

import pytest

from igpt.errors import Unreachable, UserError
from igpt.jobs.context import Context, RunSink
from igpt.jobs.process import StopFlag
from igpt.jobs.worker import _claim, _insist
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, claim
from igpt.runs.record import open_run
from igpt.storage import Store


@pytest.fixture
def run(store: Store) -> Run:
    """A run whose first attempt has saved steps 1,000 and 2,000."""
    run = open_run(store, "tiny-1a2b3c4d")
    run.event(ev.SUBMITTED, writer="client", attempt=1)
    claim(run.record, Claim(1, "a", "host", 1, 0.0))
    for step in (1000, 2000):
        run.record.put(f"checkpoints/step-{step:09d}/attempt-1/COMMITTED", b"")
    return run


def test_a_step_that_was_asked_for_outlives_attempts_that_ended_before_their_claim(
    run: Run,
) -> None:
    run.event(ev.SUBMITTED, writer="client", attempt=2, from_step=1500)
    run.event(ev.REQUEUED, writer="supervisor", attempt=3)  # attempt 2 found no room
    assert _claim(run, 3, 1).start_step == 1000


def test_a_step_that_was_asked_for_counts_once(run: Run) -> None:
    run.event(ev.SUBMITTED, writer="client", attempt=2, from_step=1500)
    assert _claim(run, 2, 1).start_step == 1000
    run.record.put("checkpoints/step-000001800/attempt-2/COMMITTED", b"")
    run.event(ev.REQUEUED, writer="supervisor", attempt=3)
    assert _claim(run, 3, 1).start_step == 1800


def test_the_last_word_on_the_step_counts(run: Run) -> None:
    run.event(ev.SUBMITTED, writer="client", attempt=2, from_step=1500)
    run.event(ev.SUBMITTED, writer="client", attempt=3)
    assert _claim(run, 3, 1).start_step == 2000


def test_only_step_0_begins_anew(run: Run) -> None:
    run.event(ev.SUBMITTED, writer="client", attempt=2, from_step=500)
    with pytest.raises(UserError, match="no checkpoint at or before step 500"):
        _claim(run, 2, 1)
    assert len(run.claims()) == 1
    run.event(ev.SUBMITTED, writer="client", attempt=3, from_step=0)
    assert _claim(run, 3, 1).start_attempt is None


def test_the_time_that_is_left_counts_from_the_first_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flag = StopFlag(grace=60.0)
    assert flag.time_left() == math.inf
    for _ in range(2):
        flag._handle(signal.SIGTERM, None)
    assert flag()
    assert 50 < flag.time_left() <= 60


def test_a_result_waits_for_the_store_unless_there_is_no_time(run: Run, tmp_path: Path) -> None:
    def context(left: float) -> Context:
        owned = Claim(1, "a", "host", 1, 0.0)
        sink = RunSink(run, 1, tmp_path, 0)
        return Context(run, owned, 0, 1, 0, lambda: False, sink, time_left=lambda: left)

    tries: list[str] = []

    def finish() -> None:
        tries.append("once")
        if len(tries) < 2:
            raise Unreachable("away")

    with pytest.raises(Unreachable):
        _insist(finish, context(0.1))
    tries.clear()
    _insist(finish, context(math.inf))
    assert len(tries) == 2
