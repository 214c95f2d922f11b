"""How a run stands, from its record, the clock and what the backend says."""

from typing import Any

import pytest

from igpt.runs import events as ev
from igpt.runs.events import Event
from igpt.runs.state import (
    Heartbeat,
    RunState,
    Sight,
    Status,
    cancel_requested,
    derive,
    failures_since_launch,
)

NOW = 1000.0


def event(kind: str, time: float, attempt: int = 1, **fields: Any) -> Event:
    return Event(time, "test", kind, {"attempt": attempt, **fields})


def stand(
    history: list[Event],
    *,
    result: bool = False,
    beat: float | None = None,
    phase: str = "running",
    alive: bool | None = None,
) -> Status:
    heartbeat = None if beat is None else Heartbeat(beat, phase, "host", {})
    return derive("a-1", history, result=result, heartbeat=heartbeat, now=NOW, sight=Sight(alive))


BEGUN = [event(ev.SUBMITTED, 990.0), event(ev.LAUNCHED, 991.0)]
OLD = [event(ev.SUBMITTED, 100.0), event(ev.LAUNCHED, 101.0)]
DEAD = event(ev.FAILED, 995.0, **{"class": "node", "reason": "rank 0 was killed", "final": True})


@pytest.mark.parametrize(
    ("history", "options", "expected"),
    [
        (BEGUN, {"result": True}, RunState.FINISHED),
        ([*BEGUN, DEAD], {"result": True}, RunState.FINISHED),
        ([event(ev.SUBMITTED, 990.0)], {}, RunState.SUBMITTED),
        ([event(ev.SUBMITTED, 100.0)], {}, RunState.STALLED),
        (BEGUN, {"beat": 999.0, "phase": "queued", "alive": True}, RunState.QUEUED),
        (BEGUN, {"alive": True}, RunState.QUEUED),
        (BEGUN, {"beat": 999.0, "alive": True}, RunState.RUNNING),
        (BEGUN, {"beat": 999.0}, RunState.RUNNING),
        (BEGUN, {"beat": 999.0, "alive": False}, RunState.STALLED),
        (OLD, {"beat": 900.0}, RunState.STALLED),
        (OLD, {"beat": 900.0, "alive": True}, RunState.STALLED),
        ([*BEGUN, DEAD], {"beat": 999.0}, RunState.FAILED),
        ([*BEGUN, event(ev.CANCELLED, 995.0)], {"beat": 999.0}, RunState.CANCELLED),
    ],
)
def test_the_state_follows_from_the_record(
    history: list[Event], options: dict[str, Any], expected: RunState
) -> None:
    assert stand(history, **options).state is expected


def test_a_record_without_events_is_an_orphan_after_a_while() -> None:
    def begun(created: float) -> RunState:
        return derive(
            "a-1", [], result=False, heartbeat=None, now=NOW, sight=Sight(), created=created
        ).state

    assert begun(NOW - 10) is RunState.SUBMITTED
    assert begun(NOW - 100) is RunState.STALLED


def test_a_clock_that_is_ahead_does_not_make_a_dead_run_look_alive() -> None:
    history = [event(ev.SUBMITTED, 100.0), event(ev.LAUNCHED, 101.0)]
    ahead = Heartbeat(NOW + 86_400, "running", "host", {})
    assert (
        derive("a-1", history, result=False, heartbeat=ahead, now=NOW, sight=Sight(False)).state
        is RunState.STALLED
    )


@pytest.mark.parametrize(
    ("progress", "reason"),
    [
        ({}, "waiting for a free slot"),
        ({"waiting_for": "run b-2, c-3"}, "waiting for run b-2, c-3"),
    ],
)
def test_a_queued_run_says_what_it_waits_for(progress: dict[str, Any], reason: str) -> None:
    beat = Heartbeat(999.0, "queued", "host", progress)
    stands = derive("a-1", BEGUN, result=False, heartbeat=beat, now=NOW, sight=Sight(True))
    assert (stands.state, stands.reason) == (RunState.QUEUED, reason)


def test_a_run_that_saved_and_stopped_with_its_machine_says_so() -> None:
    stopped = stand([*BEGUN, event(ev.PREEMPTED, 995.0)], alive=False)
    assert (stopped.state, stopped.reason) == (
        RunState.STALLED,
        "stopped with its machine, saved",
    )


def test_a_request_from_a_machine_whose_clock_is_behind_counts() -> None:
    assert cancel_requested([event(ev.CANCEL_REQUESTED, 10.0), *BEGUN])


def test_a_failure_that_is_retried_is_not_the_end() -> None:
    again = event(ev.FAILED, 995.0, **{"class": "node", "reason": "", "final": False})
    assert stand([*BEGUN, again], beat=999.0).state is RunState.RUNNING


def test_a_resumed_run_forgets_how_it_ended_before() -> None:
    resumed = [event(ev.SUBMITTED, 996.0, 2), event(ev.LAUNCHED, 997.0, 2)]
    assert stand([*BEGUN, DEAD, *resumed], beat=999.0).state is RunState.RUNNING


def test_what_an_old_attempt_writes_late_says_nothing_of_the_run() -> None:
    resumed = [event(ev.SUBMITTED, 996.0, 2), event(ev.LAUNCHED, 997.0, 2)]
    late = event(ev.FAILED, 998.0, 1, **{"class": "crash", "reason": "", "final": True})
    assert stand([*BEGUN, *resumed, late], beat=999.0).state is RunState.RUNNING


@pytest.mark.parametrize(
    ("failure", "code"), [("user-error", 2), ("node", 1), ("storage", 1), ("crash", 1)]
)
def test_the_exit_code_of_a_failed_run_tells_whose_mistake_it_was(failure: str, code: int) -> None:
    failed = event(ev.FAILED, 995.0, **{"class": failure, "reason": "why", "final": True})
    ended = stand([*BEGUN, failed])
    assert (ended.exit_code, ended.reason) == (code, f"{failure}: why")


def test_a_stalled_run_says_what_to_do() -> None:
    stalled = stand(OLD, beat=900.0)
    assert stalled.exit_code == 6
    assert "100 s" in stalled.reason
    assert "igpt-jobs resume a-1" in stalled.next


@pytest.mark.parametrize(
    ("beat", "alive", "waited_for"),
    [(900.0, True, True), (900.0, None, False), (900.0, False, False), (90.0, True, False)],
)
def test_a_silent_run_is_waited_for_while_its_cluster_has_it_but_not_for_ever(
    beat: float, alive: bool | None, waited_for: bool
) -> None:
    """A scheduler finds out about a lost node after minutes, and starts the job again itself."""
    early = [event(ev.SUBMITTED, 80.0), event(ev.LAUNCHED, 81.0)]
    silent = stand(early, beat=beat, alive=alive)
    assert (silent.state, silent.exit_code) == (RunState.STALLED, 6)
    assert (silent.held, silent.open) == (waited_for, waited_for)
    assert ("its cluster still has it" in silent.next) == waited_for
    assert ("for 14 min more, igpt-jobs resume a-1" in silent.next) == waited_for
    assert "igpt-jobs resume a-1" in silent.next


@pytest.mark.parametrize(
    ("beat", "ran", "state"),
    [
        (None, None, RunState.QUEUED),
        (None, 1800.0, RunState.QUEUED),
        (None, 1801.0, RunState.STALLED),
        (NOW - 10, 1801.0, RunState.RUNNING),
        (NOW - 500, 0.0, RunState.QUEUED),  # the sign of life is of an earlier start
        (NOW - 500, 430.0, RunState.QUEUED),
        (NOW - 500, 501.0, RunState.STALLED),
        (NOW - 70, 20.0, RunState.RUNNING),
    ],
)
def test_a_job_is_starting_for_half_an_hour_at_most(
    beat: float | None, ran: float | None, state: RunState
) -> None:
    heartbeat = None if beat is None else Heartbeat(beat, "running", "host", {})
    sight = Sight(True, reason="job 17 is RUNNING", running_seconds=ran, mend="see job.log")
    stands = derive("a-1", OLD, result=False, heartbeat=heartbeat, now=NOW, sight=sight)
    assert stands.state is state
    if beat is None and state is RunState.STALLED:
        assert stands.reason == "started 30 min ago and gave no sign of life (job 17 is RUNNING)"
        assert stands.next.startswith("see job.log, then igpt-jobs resume a-1")
        assert not stands.open


def test_failures_and_cancellations_count_since_the_last_launch() -> None:
    asked = event(ev.CANCEL_REQUESTED, 995.0)
    resumed = event(ev.SUBMITTED, 996.0, 2)
    assert failures_since_launch([*BEGUN, DEAD]) == {1: "node"}
    assert failures_since_launch([*BEGUN, DEAD, resumed]) == {}
    assert cancel_requested([*BEGUN, asked])
    assert not cancel_requested([*BEGUN, asked, resumed])
