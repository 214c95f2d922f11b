"""What a job of Slurm reads from and writes into the record: whose turn it is, and what follows.

No Slurm is needed: a start of a job is a number and a count of restarts.
"""

import os
from pathlib import Path

import pytest

from igpt.cli import cancel
from igpt.clusters import pursue_cancel
from igpt.clusters.files import cluster_key
from igpt.clusters.slurm.after import (
    attempt_of,
    seconds_left,
    step_words,
    was_cancelled,
)
from igpt.clusters.slurm.backend import SLURM
from igpt.clusters.slurm.bounds import fruitless
from igpt.clusters.slurm.client import rejected
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.jobs import read_job, write_job
from igpt.clusters.slurm.place import job_folder
from igpt.clusters.slurm.turn import START_MARK, Turn, open_attempt, take_turn
from igpt.config import dump_yaml
from igpt.errors import Superseded
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, claim
from igpt.runs.record import open_run
from igpt.runs.state import RunState
from igpt.storage import Store

CLUSTER = SlurmCluster(workers=2)


@pytest.fixture
def run(store: Store) -> Run:
    """A run that has been submitted as job 17, for its first attempt."""
    run = open_run(store, "tiny-1a2b3c4d")
    run.record.put("spec.yaml", b"job: pretrain\nname: tiny\nconfig: {}\ninputs: {}\n")
    submitted(run, 1)
    assert write_job(run, 1, "17", restarts=0)
    return run


def submitted(run: Run, attempt: int) -> None:
    run.event(ev.SUBMITTED, writer="client", attempt=attempt)
    run.record.put(cluster_key(attempt), dump_yaml(CLUSTER).encode())


def started(run: Run, attempt: int, step: int = 0) -> None:
    wanted = Claim(attempt, f"17.{attempt}", "n1", 2, 0.0, step, attempt - 1 if step else None)
    assert claim(run.record, wanted)
    run.event(ev.STARTED, writer="worker", attempt=attempt)


def saved(run: Run, attempt: int, step: int) -> None:
    run.record.put(f"checkpoints/step-{step:09d}/attempt-{attempt}/COMMITTED", b"x")


def kinds(run: Run) -> list[tuple[int | None, str]]:
    return [(event.attempt, event.kind) for event in run.events(ev.LIFE)]


def test_the_first_start_takes_the_attempt_it_was_submitted_for(run: Run) -> None:
    assert take_turn(run, Turn("17", 0, 1), CLUSTER) == 1
    assert (1, ev.LAUNCHED) in kinds(run)  # its client may have died before it could say so


def test_a_job_whose_client_died_before_recording_it_records_itself(store: Store) -> None:
    run = open_run(store, "tiny-1a2b3c4d")
    submitted(run, 1)
    assert take_turn(run, Turn("17", 0, 1), CLUSTER) == 1
    assert read_job(run, 1) == {"job": "17", "restarts": 0}
    with pytest.raises(Superseded, match="another job's, not 18's"):
        take_turn(run, Turn("18", 0, 1), CLUSTER)


def test_a_start_by_slurm_itself_settles_the_lost_attempt_and_takes_the_next(run: Run) -> None:
    started(run, 1)
    assert take_turn(run, Turn("17", 1, 1), CLUSTER) == 2
    assert (1, ev.PREEMPTED) in kinds(run)
    assert (2, ev.REQUEUED) in kinds(run)
    assert read_job(run, 2) == {"job": "17", "restarts": 1}
    assert run.record.get(cluster_key(2)) == run.record.get(cluster_key(1))


def test_a_start_after_our_own_requeue_takes_what_was_made_ready(run: Run) -> None:
    started(run, 1)
    run.event(ev.FAILED, writer="supervisor", attempt=1, final=False, **{"class": "node"})
    assert open_attempt(run, Turn("17", 1, 1)) == 2
    assert take_turn(run, Turn("17", 1, 1), CLUSTER) == 2
    assert kinds(run).count((2, ev.REQUEUED)) == 1


def test_to_open_an_attempt_twice_is_to_open_it_once(run: Run) -> None:
    """The store may go away in the middle of it."""
    run.record.create("attempts/0002/job.json", b'{"job": "17", "restarts": 1}')
    assert open_attempt(run, Turn("17", 1, 1)) == 2
    assert open_attempt(run, Turn("17", 1, 1)) == 2
    assert kinds(run).count((2, ev.REQUEUED)) == 1


def test_a_job_that_was_overtaken_by_a_resume_elsewhere_is_superseded(run: Run) -> None:
    started(run, 1)
    submitted(run, 2)
    with pytest.raises(Superseded, match="attempt 2"):
        take_turn(run, Turn("17", 1, 1), CLUSTER)
    assert attempt_of(run, Turn("17", 0, 1)) is None


@pytest.mark.parametrize("kind", [ev.CANCELLED, ev.FAILED, "result"])
def test_a_run_that_is_over_is_not_started_again_by_a_late_requeue(run: Run, kind: str) -> None:
    started(run, 1)
    if kind == "result":
        run.record.put("result.json", b"{}")
    else:
        run.event(kind, writer="supervisor", attempt=1, final=True, **{"class": "node"})
    with pytest.raises(Superseded, match="is over"):
        take_turn(run, Turn("17", 1, 1), CLUSTER)


def test_attempts_that_save_nothing_new_come_to_an_end(run: Run) -> None:
    for attempt in (1, 2, 3):
        if attempt > 1:
            open_attempt(run, Turn("17", attempt - 1, 1))
        assert not fruitless(run, attempt, 3)
        started(run, attempt)
    assert fruitless(run, 3, 3)
    saved(run, 3, 40)
    assert not fruitless(run, 3, 3)


def test_attempts_that_are_stopped_before_their_claim_come_to_an_end(run: Run) -> None:
    started(run, 1)
    for attempt in (2, 3):
        open_attempt(run, Turn("17", attempt - 1, 1))
        assert not fruitless(run, attempt, 3)
        run.event(ev.PREEMPTED, writer="supervisor", attempt=attempt, **{"class": "timeout"})
    open_attempt(run, Turn("17", 3, 1))
    assert fruitless(run, 4, 3)
    started(run, 4)
    open_attempt(run, Turn("17", 4, 1))
    assert not fruitless(run, 5, 3)


def test_attempts_that_finish_a_piece_each_go_on_for_ever(run: Run) -> None:
    """Shards and features make no checkpoint: what counts are the pieces at the end of each."""
    place = run.root.sub("data/digits")
    for attempt in range(1, 6):
        if attempt > 1:
            open_attempt(run, Turn("17", attempt - 1, 1))
        started(run, attempt)
        before = len(place.objects())
        run.event(ev.PIECES, writer="worker", attempt=attempt, place=place.uri, there=before)
        place.put(f"train-{attempt:06d}.tar", b"x")
        assert not fruitless(run, attempt, 3)


def test_attempts_that_only_pass_over_finished_pieces_come_to_an_end(run: Run) -> None:
    place = run.root.sub("data/digits")
    place.put("train-000000.tar", b"x")  # of an earlier run
    for attempt in (1, 2, 3, 4):
        if attempt > 1:
            open_attempt(run, Turn("17", attempt - 1, 1))
        started(run, attempt)
        if attempt == 2:
            continue  # ended before it could say how much was there
        there = len(place.objects())
        run.event(ev.PIECES, writer="worker", attempt=attempt, place=place.uri, there=there)
        if attempt == 1:
            place.put("train-000001.tar", b"x")
    assert not fruitless(run, 4, 4)  # the first of them has finished one
    assert fruitless(run, 4, 3)


def test_a_resume_begins_the_count_anew(run: Run) -> None:
    started(run, 1)
    open_attempt(run, Turn("17", 1, 1))
    started(run, 2)
    submitted(run, 3)
    write_job(run, 3, "18", restarts=0)
    started(run, 3)
    assert not fruitless(run, 3, 3)


@pytest.fixture
def queue(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `squeue` shows: job 17, which waits to start again. `scancel` empties it."""
    shown = tmp_path / "queue"
    shown.write_text(f"17|PENDING|0:00|BeginTime|{run.id}|{job_folder(CLUSTER, run.uri)}\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"squeue": f"cat {shown}", "scancel": f": > {shown}"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    SLURM.forget()
    return shown


def test_a_cancel_that_the_job_did_not_hear_takes_it_out_of_the_queue(
    run: Run, queue: Path
) -> None:
    """It came while the job was about to go back there, where nobody listens."""
    started(run, 1)
    open_attempt(run, Turn("17", 1, 1))
    assert pursue_cancel(run).state is RunState.QUEUED  # nobody has asked
    run.event(ev.CANCEL_REQUESTED, writer="client", attempt=1)
    now = pursue_cancel(run)
    assert (now.state, now.reason) == (RunState.CANCELLED, "by the user")
    assert queue.read_text() == ""


def test_cancel_waits_for_a_job_that_went_back_into_the_queue_meanwhile(
    run: Run, queue: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started(run, 1)
    waiting = queue.read_text()
    queue.write_text(waiting.replace("PENDING", "COMPLETING"))
    scancel = queue.parent / "bin" / "scancel"
    back = f"echo '{waiting.strip()}' > {queue}"
    text = f"case $1 in --signal*) {back} ;; *) : > {queue} ;; esac"
    scancel.write_text(f"#!/bin/sh\n{text}\n")
    monkeypatch.setattr(cancel, "_ASK_SECONDS", 0.0)
    cancel.command(run.id, run.root.uri, wait=True)
    assert f"{run.id} cancelled" in "".join(capfd.readouterr())


SCANCEL = {"JobState": "COMPLETING", "EndTime": "2026-11-24T14:00:00", "Restarts": "0"}
TIME = {"TimeLimit": "01:00:00", "RunTime": "00:10:00"}


@pytest.mark.parametrize(
    ("job", "cancelled"),
    [
        (SCANCEL | TIME, True),
        (SCANCEL | {"TimeLimit": "UNLIMITED", "RunTime": "00:10:00"}, True),
        (SCANCEL | TIME | {"JobState": "RUNNING"}, False),
        (SCANCEL | TIME | {"Restarts": "1"}, False),  # a preemption: Slurm has requeued it
        (SCANCEL | TIME | {"RunTime": "01:00:10"}, False),  # its time was up
        ({}, False),  # in a container without Slurm's commands
    ],
)
def test_an_administrators_scancel_is_told_from_a_preemption_and_a_time_limit(
    job: dict[str, str], cancelled: bool
) -> None:
    assert was_cancelled(job, Turn("17", 0, 1)) == cancelled


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        ("sbatch: error: invalid partition specified: gpu", 2),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy", 2),
        ("Unable to contact slurm controller (connect failure)", 3),
        ("Batch job submission failed: Socket timed out on send/recv operation", 3),
        ("Batch job submission failed: Zero Bytes were transmitted or received", 3),
        ("Batch job submission failed: Message receive failure", 3),
        ("Batch job submission failed: Message send failure", 3),
        ("Batch job submission failed: Slurm backup controller in standby mode", 3),
        ("", 3),  # sbatch was killed
        ("sbatch: fatal: Could not establish a configuration source", 3),  # no cluster's machine
    ],
)
def test_a_cluster_that_is_away_is_told_from_one_that_refuses(words: str, exit_code: int) -> None:
    assert rejected(words).exit_code == exit_code


def test_the_time_left_is_slurms_own() -> None:
    assert seconds_left(TIME) == 3000
    assert seconds_left({"TimeLimit": "1-00:00:00", "RunTime": "23:59:00"}) == 60
    assert seconds_left({"TimeLimit": "UNLIMITED", "RunTime": "00:10:00"}) is None


def test_words_of_an_earlier_start_are_not_those_of_this_one(tmp_path: Path) -> None:
    """Slurm appends: an old kill for want of memory is no reason now."""
    text = f"{START_MARK} 17.0\noom-kill\n{START_MARK} 17.1\nall is well\n"
    (tmp_path / "17_0_log.err").write_text(text)
    (tmp_path / "17_1_log.err").write_text(f"{START_MARK} 17.0\noom-kill\n")
    assert step_words(tmp_path, Turn("17", 1, 1)).strip() == "all is well"
    assert "oom-kill" not in step_words(tmp_path, Turn("17", 2, 1))
