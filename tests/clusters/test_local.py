"""The life of a run on the local cluster: queue, cancel, failures, adoption of an orphan."""

import os
import signal

import pytest

from igpt.clusters import cancel, resume, status
from igpt.errors import UserError
from igpt.jobs.references import newest_checkpoint
from igpt.runs import Run, create_run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, claim
from igpt.runs.listing import list_hints
from igpt.runs.record import open_run
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.support import study

LONG = ("schedule.steps=100000", "checkpoints.every_steps=20")


def kinds(run: Run) -> list[str]:
    return [event.kind for event in run.events()]


def running(run: Run) -> None:
    study.until(lambda: status(run).state is RunState.RUNNING, f"{run.id} runs")


def test_a_finished_run_has_all_its_records(root: Store) -> None:
    run = study.start(root, study.cluster())
    assert study.ended(run).state is RunState.FINISHED
    names = {info.key for info in run.record.objects()}
    assert {"spec.yaml", "provenance.json", "result.json"} <= names
    assert {"attempts/0001/claim.json", "attempts/0001/cluster.yaml"} <= names
    assert any(name.startswith("attempts/0001/logs/00000-") for name in names)
    assert kinds(run)[:3] == [ev.SUBMITTED, ev.LAUNCHED, ev.STARTED]
    result = run.result()
    assert result is not None
    assert result["step"] == 40
    assert [hint.state for hint in list_hints(root)] == [RunState.FINISHED]
    heartbeat = run.heartbeat()
    assert heartbeat is not None
    assert (heartbeat.progress["done"], heartbeat.progress["total"]) == (40, 40)


def test_the_same_work_is_the_run_that_exists_and_new_is_another(root: Store) -> None:
    first = study.start(root, study.cluster())
    assert study.start(root, study.cluster()).id == first.id
    study.ended(first)
    assert study.start(root, study.cluster()).id == first.id
    assert kinds(first).count(ev.SUBMITTED) == 1


def test_one_run_waits_for_the_other_and_can_be_cancelled_while_it_waits(root: Store) -> None:
    first = study.start(root, study.cluster(), *LONG)
    running(first)
    second = study.start(root, study.cluster(), "seed=1")
    assert status(second).state is RunState.QUEUED
    cancel(second)
    assert study.ended(second).state is RunState.CANCELLED
    assert ev.STARTED not in kinds(second)
    assert status(first).state is RunState.RUNNING


def test_two_at_once_run_at_once_where_the_cluster_allows_it(root: Store) -> None:
    runs = [study.start(root, study.cluster(max_parallel=2), *LONG, f"seed={i}") for i in range(2)]
    for run in runs:
        running(run)
    assert {status(run).state for run in runs} == {RunState.RUNNING}


def test_a_cancelled_run_has_saved_and_can_be_resumed(root: Store) -> None:
    run = study.start(root, study.cluster(), *LONG)
    study.reached(run, 20)
    cancel(run)
    ended = study.ended(run)
    assert (ended.state, ended.exit_code) == (RunState.CANCELLED, 5)
    saved = newest_checkpoint(run)
    assert saved is not None
    assert max(study.losses(run)) == saved[0]
    resume(run)
    running(run)
    study.until(lambda: len(run.claims()) == 2, "the second attempt claims")
    assert run.claims()[1].start_step == saved[0]


def test_a_users_error_in_a_worker_is_not_tried_again(root: Store) -> None:
    first = study.start(root, study.cluster(), *LONG)
    running(first)
    second = study.start(root, study.cluster(), "seed=1")
    # What the second run was submitted with is gone before its turn comes.
    root.delete(["data/digits/index.json"])
    cancel(first)
    ended = study.ended(second)
    assert (ended.state, ended.exit_code) == (RunState.FAILED, 2)
    assert "user-error" in ended.reason
    assert len(second.claims()) == 1


def test_a_worker_that_dies_again_and_again_uses_up_its_budget(root: Store) -> None:
    run = study.start(root, study.cluster(retries={"node": 1}), *LONG)
    for attempt in (1, 2):
        study.until(lambda number=attempt: len(run.claims()) == number, "an attempt claims")
        study.send(study.processes(run, "igpt.jobs"), signal.SIGKILL)
    ended = study.ended(run)
    assert (ended.state, ended.exit_code) == (RunState.FAILED, 1)
    assert "killed by signal 9" in ended.reason
    assert [e.fields["final"] for e in run.events() if e.kind == ev.FAILED] == [False, True]


def test_a_damaged_checkpoint_stops_the_run_and_is_named(root: Store) -> None:
    run = study.start(root, study.cluster(retries={"node": 0}), *LONG)
    study.reached(run, 60)
    study.kill(run)
    saved = newest_checkpoint(run)
    assert saved is not None
    key = f"checkpoints/step-{saved[0]:09d}/attempt-1/model.safetensors"
    whole = bytearray(run.record.get(key))
    whole[-1] ^= 1
    run.record.put(key, bytes(whole))
    resume(run)
    ended = study.ended(run)
    assert ended.state is RunState.FAILED
    assert ended.reason.startswith("corrupt: ")
    assert "model.safetensors" in ended.reason
    assert len(run.claims()) == 2
    # The checkpoint before it is still there.
    resume(run, from_step=saved[0] - 1)
    study.until(lambda: len(run.claims()) == 3, "a third attempt claims")
    assert 0 < run.claims()[2].start_step < saved[0]
    study.reached(run, saved[0] + 20)


def test_going_back_to_before_the_first_checkpoint_is_refused(store: Store) -> None:
    run = open_run(store, "tiny-1a2b3c4d")
    run.event(ev.SUBMITTED, writer="client", attempt=1)
    run.event(ev.CANCELLED, writer="client", attempt=1)
    with pytest.raises(UserError, match="has no checkpoint at or before step 5"):
        resume(run, study.cluster(), from_step=5)
    claim(run.record, Claim(1, "a", "host", 1, 0.0))
    claim(run.record, Claim(2, "b", "host", 1, 0.0, 20, 1))
    for step in (20, 30, 40):  # attempt 2 did not start from what attempt 1 made after step 20
        run.record.put(
            f"checkpoints/step-{step:09d}/attempt-{2 if step > 30 else 1}/COMMITTED", b""
        )
    before = [info.key for info in store.objects()]
    with pytest.raises(UserError, match="from 20 on; there are 20, 40"):
        resume(run, study.cluster(), from_step=19)
    assert [info.key for info in store.objects()] == before


def test_a_client_that_died_before_launching_leaves_a_run_that_resume_adopts(root: Store) -> None:
    template = study.start(root, study.cluster())
    study.ended(template)
    spec = template.spec()
    orphan, created = create_run(
        root,
        job=spec.job,
        name="orphan",
        config=spec.config,
        inputs=spec.inputs,
        status=status,
    )
    assert created
    assert orphan.id in [hint.run for hint in list_hints(root)]
    # For a minute its client may still be about to launch it; then it counts as stalled.
    assert status(orphan).state is RunState.SUBMITTED
    with pytest.raises(UserError, match="--cluster"):
        resume(orphan, force=True)
    resume(orphan, study.cluster(), force=True)
    assert study.ended(orphan).state is RunState.FINISHED
    assert study.losses(orphan) == study.losses(template)


def test_no_process_is_left_behind_when_the_supervisor_is_killed(root: Store) -> None:
    run = study.start(root, study.cluster(workers=2), *LONG)
    study.reached(run, 20)
    study.send(study.processes(run, "igpt.clusters"), signal.SIGKILL)
    # The kernel tells the workers, which save and end by themselves.
    study.until(lambda: not study.processes(run), "the workers end", 60)
    assert status(run).state is RunState.STALLED
    assert not [pid for pid in study.processes(run) if os.path.exists(f"/proc/{pid}")]
