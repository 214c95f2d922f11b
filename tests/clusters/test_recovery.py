"""What a run survives on the local cluster: killed workers, killed everything, a sleeping attempt.

The yardstick is a run that nothing happened to: the merged losses have to be the same, to the last
bit, with no step twice.
"""

import random
import signal
import time
from pathlib import Path

import pytest

from igpt.clusters import resume, status
from igpt.errors import UserError
from igpt.jobs.references import committed_checkpoints, newest_checkpoint
from igpt.runs import events as ev
from igpt.runs.logs import new_lines
from igpt.runs.state import RunState
from igpt.storage import Store, open_store
from tests.support import study
from tests.support.file_systems import removable


@pytest.fixture(params=[1, 2], ids=["one-worker", "two-workers"])
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def undisturbed(root: Store, workers: int) -> dict[int, float]:
    run = study.start(root.sub("undisturbed"), study.cluster(workers=workers))
    assert study.ended(run).state is RunState.FINISHED
    return study.losses(run)


@pytest.fixture
def yardstick(root: Store, workers: int) -> dict[int, float]:
    """The losses of a run that nothing happens to."""
    for info in root.objects("data/"):
        root.sub("undisturbed").put(info.key, root.get(info.key))
    with study.cleaned(root.sub("undisturbed")):
        return undisturbed(root, workers)


def test_killed_workers_and_killed_everything_leave_no_trace_in_the_losses(
    root: Store, workers: int, yardstick: dict[int, float]
) -> None:
    where = study.cluster(workers=workers)
    run = study.start(root, where)
    # One worker, at a random moment after a checkpoint: the supervisor starts it again by itself.
    study.reached(run, random.choice([5, 10]))
    victims = study.until(lambda: study.processes(run, "igpt.jobs"), "a worker runs")
    study.send([random.choice(victims)], signal.SIGKILL)
    study.until(
        lambda: any(event.kind == ev.REQUEUED for event in run.events()), "the run is requeued"
    )
    # Everything: nobody is left, the run stalls, and the user resumes it.
    study.reached(run, 20)
    study.kill(run)
    stalled = status(run)
    assert stalled.state is RunState.STALLED
    assert stalled.exit_code == 6
    resume(run)
    assert study.ended(run).state is RunState.FINISHED

    assert study.losses(run) == yardstick
    assert sorted(study.losses(run)) == list(range(1, 41))
    assert [claim.start_step for claim in run.claims()] == sorted(
        claim.start_step for claim in run.claims()
    )
    assert len(run.claims()) == 3


@pytest.mark.parametrize("workers", [2])
def test_a_store_that_is_not_mounted_for_a_while_leaves_no_trace_in_the_losses(
    tmp_path: Path, root: Store, workers: int, yardstick: dict[int, float]
) -> None:
    with removable(tmp_path / "mounted") as mounted:
        store = open_store(str(mounted.folder))
        for info in root.objects("data/"):
            store.put(info.key, root.get(info.key))
        with study.cleaned(store):
            run = study.start(store, study.cluster(workers=workers))
            study.reached(run, 10)
            mounted.leave(empty=True)
            try:
                time.sleep(3)  # several heartbeats and checkpoints
                assert study.processes(run, "igpt.clusters")
            finally:
                mounted.come_back()
            assert study.ended(run).state is RunState.FINISHED
            assert study.losses(run) == yardstick


def test_an_attempt_that_sleeps_through_a_resume_commits_nothing(root: Store) -> None:
    run = study.start(root, study.cluster())
    study.reached(run, 10)
    old = study.processes(run)
    study.send(old, signal.SIGSTOP)
    before = committed_checkpoints(run)
    with pytest.raises(UserError, match="--force"):
        resume(run)
    resume(run, force=True)
    study.until(lambda: run.result(), "the newer attempt finishes")
    after = [one for one in committed_checkpoints(run) if one[1] == 1]
    study.send(old, signal.SIGCONT)
    study.until(lambda: not study.processes(run), "the older attempt ends")

    assert [one for one in committed_checkpoints(run) if one[1] == 1] == after
    assert set(after) <= set(before)
    result = run.result()
    assert result is not None
    assert result["attempt"] == 2
    superseded = [event for event in run.events() if event.kind == ev.SUPERSEDED]
    assert [event.attempt for event in superseded] == [1]
    assert status(run).state is RunState.FINISHED
    assert sorted(study.losses(run)) == list(range(1, 41))


def test_any_number_of_workers_takes_a_run_on_with_the_same_data(root: Store) -> None:
    run = study.start(root, study.cluster(workers=1))
    study.reached(run, 10)
    study.kill(run)
    resume(run, study.cluster(workers=3))
    assert study.ended(run).state is RunState.FINISHED
    assert [claim.workers for claim in run.claims()] == [1, 3]

    alone = root.sub("alone")
    for info in root.objects("data/"):
        alone.put(info.key, root.get(info.key))
    with study.cleaned(alone):
        other = study.start(alone, study.cluster(workers=2))
        assert study.ended(other).state is RunState.FINISHED
        assert study.digests(run) == study.digests(other)
        assert study.losses(run) == pytest.approx(study.losses(other), abs=1e-5)


def test_a_run_that_is_asked_to_stop_saves_first_and_goes_on_from_there(root: Store) -> None:
    run = study.start(
        root,
        study.cluster(),
        "checkpoints.every_steps=1000",
        "checkpoints.every_minutes=60.0",
        "schedule.steps=100000",
    )
    study.until(lambda: (run.heartbeat() or 0) and run.heartbeat().progress, "it trains")  # type: ignore[union-attr]
    study.send(study.processes(run, "igpt.clusters"), signal.SIGTERM)
    study.until(lambda: not study.processes(run), "it stops")
    saved = newest_checkpoint(run)
    assert saved is not None
    assert saved[0] > 0
    assert max(study.losses(run)) == saved[0]
    assert any(event.kind == ev.PREEMPTED for event in run.events())


def test_an_attempt_that_was_overtaken_is_not_started_again(root: Store) -> None:
    run = study.start(
        root, study.cluster(), "schedule.steps=100000", "checkpoints.every_steps=1000000"
    )
    study.until(lambda: run.claims(), "the first attempt claims")
    supervisor = study.processes(run, "igpt.clusters")
    old = study.processes(run)
    study.send(old, signal.SIGSTOP)
    resume(run, force=True)
    study.until(lambda: len(run.claims()) == 2, "the second attempt claims")
    # Its worker dies while the old supervisor sleeps; that is no reason to start another.
    study.send([pid for pid in old if pid not in supervisor], signal.SIGKILL)
    study.send(supervisor, signal.SIGCONT)
    study.until(lambda: not set(supervisor) & set(study.processes(run)), "the old one ends")
    assert len(run.claims()) == 2
    assert [e.attempt for e in run.events() if e.kind == ev.SUPERSEDED] == [1]
    assert status(run).state is RunState.RUNNING


def test_the_same_work_in_two_stores_is_two_runs_on_one_machine(root: Store) -> None:
    other = root.sub("other")
    for info in root.objects("data/"):
        other.put(info.key, root.get(info.key))
    with study.cleaned(other):
        first = study.start(root, study.cluster(max_parallel=2))
        second = study.start(other, study.cluster(max_parallel=2))
        assert first.id == second.id
        assert study.ended(first).state is RunState.FINISHED
        assert study.ended(second).state is RunState.FINISHED
        assert study.losses(first) == study.losses(second)


def test_a_worker_that_is_stuck_is_found_dumped_and_started_again(
    root: Store, tmp_path: Path
) -> None:
    heard = tmp_path / "heard"
    tell = {"on": ("requeued", "finished"), "command": ("sh", "-c", f"cat >> {heard}")}
    run = study.start(
        root, study.cluster(workers=2, hang_seconds=5, notify=tell), "schedule.steps=400"
    )
    study.reached(run, 10)
    victim = next(
        pid
        for pid in study.processes(run, "igpt.jobs")
        if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    )
    study.send([victim], signal.SIGSTOP)
    assert study.ended(run).state is RunState.FINISHED
    (failed,) = [event.fields for event in run.events({ev.FAILED})]
    assert (failed["class"], failed["final"]) == ("hang", False)
    assert "rank 1 is stopped" in failed["reason"]
    logs = "".join(line for _, line in new_lines(run.record, 1, set(), rank=0))
    assert "igpt/training/loop.py" in logs
    assert len(run.claims()) == 2
    assert sorted(study.losses(run)) == list(range(1, 401))
    told = heard.read_text()
    assert '"state": "requeued"' in told
    assert '"state": "finished"' in told
