"""How a start of a Slurm job ends: the verdict, what is recorded, and whether it is requeued.

No Slurm is needed: what it says of the job, and what its daemons write, are words.
"""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.clusters.files import cluster_key
from igpt.clusters.notify import NotifyConfig
from igpt.clusters.outcome import settle
from igpt.clusters.ranks.exits import write_exits
from igpt.clusters.slurm import after, node
from igpt.clusters.slurm.after import conclude, open_next
from igpt.clusters.slurm.bounds import FRUITLESS_LIMITS, STARTS_WITHOUT_STORE
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.jobs import read_job, write_job
from igpt.clusters.slurm.turn import START_MARK, Turn, open_attempt
from igpt.config import dump_yaml
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, claim
from igpt.runs.failures import REQUEUE, FailureClass, RankExit, RetryBudget, Verdict
from igpt.runs.record import open_run
from igpt.runs.state import RunState, Sight
from igpt.storage import Store

CLUSTER = SlurmCluster()
TURN = Turn("17", 0, 1)
RUNNING = {"JobState": "RUNNING", "Restarts": "0", "TimeLimit": "01:00:00", "RunTime": "00:10:00"}
ENDING = RUNNING | {"JobState": "COMPLETING", "EndTime": "2026-11-24T14:00:00"}
NEAR = RUNNING | {"RunTime": "00:59:00"}
STEP = "slurmstepd: error: *** STEP 17.0 ON n1 CANCELLED AT 2026-11-24T14:00:00"


@pytest.fixture
def run(store: Store) -> Run:
    """A run that job 17 works on, in its first attempt."""
    run = open_run(store, "tiny-1a2b3c4d")
    run.record.put("spec.yaml", b"job: shard\nname: tiny\nconfig: {}\ninputs: {}\n")
    run.event(ev.SUBMITTED, writer="client", attempt=1)
    run.record.put(cluster_key(1), dump_yaml(CLUSTER).encode())
    assert write_job(run, 1, "17", restarts=0)
    started(run, 1)
    return run


def started(run: Run, attempt: int) -> None:
    assert claim(run.record, Claim(attempt, f"17.{attempt - 1}", "n1", 1, 0.0))
    run.event(ev.STARTED, writer="worker", attempt=attempt)


def said(
    run: Run,
    attempt: int,
    code: int,
    failure: FailureClass | None = None,
    *,
    torn_down: bool = False,
) -> None:
    """The account of the only node."""
    exits = [RankExit(0, code, failure, "" if torn_down else "why", torn_down)]
    write_exits(run, attempt, 0, exits, bad=code not in (0, REQUEUE))


def last(run: Run, kind: str) -> dict[str, object]:
    event = run.last_event(kind)
    assert event is not None
    return event.fields


def stand(run: Run) -> RunState:
    return run.status(sight=Sight(True)).state


@pytest.mark.parametrize(
    ("words", "state", "code"),
    [
        (f"{STEP} DUE TO PREEMPTION ***", RunState.QUEUED, REQUEUE),
        (f"{STEP} ***", RunState.CANCELLED, 5),
        (f"{STEP} DUE to SIGNAL Terminated ***", RunState.CANCELLED, 5),
    ],
)
def test_a_job_that_slurm_cancels_for_another_is_told_from_one_that_a_user_cancels(
    run: Run, tmp_path: Path, words: str, state: RunState, code: int
) -> None:
    """With PreemptMode=CANCEL, what `scontrol show job` says is the same."""
    (tmp_path / "17_0_log.err").write_text(f"{START_MARK} 17.0\n{words}\n")
    said(run, 1, REQUEUE)
    assert conclude(run, TURN, ENDING, 0, tmp_path, 0.0) == code
    assert stand(run) is state
    assert (last(run, ev.PREEMPTED)["class"] == "preempted") if code == REQUEUE else True


def test_ranks_that_a_preemption_has_killed_are_no_lost_node(run: Run, tmp_path: Path) -> None:
    (tmp_path / "17_0_log.err").write_text(f"{START_MARK} 17.0\n{STEP} DUE TO PREEMPTION ***\n")
    run.record.put("attempts/0001/meeting.json", b'{"hosts": []}')
    assert conclude(run, TURN, ENDING, 137, tmp_path, 0.0) == REQUEUE
    assert run.last_event(ev.FAILED) is None
    assert "more important" in str(last(run, ev.PREEMPTED)["reason"])


def test_what_a_preemption_has_not_caused_is_still_a_failure(run: Run, tmp_path: Path) -> None:
    (tmp_path / "17_0_log.err").write_text(f"{START_MARK} 17.0\n{STEP} DUE TO PREEMPTION ***\n")
    said(run, 1, 2, FailureClass.USER_ERROR)
    assert conclude(run, TURN, ENDING, 1, tmp_path, 0.0) == 2
    assert stand(run) is RunState.FAILED


@pytest.mark.parametrize(
    ("job", "failure", "words"),
    [(NEAR, "timeout", "the time limit was near; "), (RUNNING, "preempted", "")],
)
def test_a_last_checkpoint_that_is_slower_than_the_grace_is_no_lost_node(
    run: Run, tmp_path: Path, job: dict[str, str], failure: str, words: str
) -> None:
    said(run, 1, -9, torn_down=True)
    assert conclude(run, TURN, job, 137, tmp_path, 0.0) == REQUEUE
    assert run.last_event(ev.FAILED) is None
    stopped = last(run, ev.PREEMPTED)
    assert stopped["class"] == failure
    assert stopped["reason"] == f"{words}rank 0 did not stop within its grace and was killed"


@pytest.mark.parametrize(
    ("other", "failure", "reason"),
    [
        (RankExit(0, 1, None, "closed by peer"), "node", "node 1 of the job gave no account"),
        (RankExit(0, -9, torn_down=True), "node", "node 1 of the job gave no account"),
        (RankExit(0, 1, FailureClass.CRASH, "ZeroDivisionError"), "crash", "ZeroDivisionError"),
        (RankExit(0, -11), "node", "rank 0 was killed by signal 11"),
    ],
)
def test_a_silent_node_is_the_reason_unless_another_has_one_of_its_own(
    run: Run, tmp_path: Path, other: RankExit, failure: str, reason: str
) -> None:
    run.record.put(cluster_key(1), dump_yaml(SlurmCluster(workers=2, nodes=2)).encode())
    run.record.put("attempts/0001/meeting.json", b'{"hosts": []}')
    write_exits(run, 1, 0, [other], bad=True)
    assert conclude(run, TURN, RUNNING, 1, tmp_path, 0.0) == REQUEUE
    failed = last(run, ev.FAILED)
    assert failed["class"] == failure
    assert str(failed["reason"]).startswith(reason)


def test_what_slurm_has_said_is_found_however_much_was_written_since_the_start(
    run: Run, tmp_path: Path
) -> None:
    noise = "the store is away, and is tried again\n" * 5000
    said_by_slurm = f"{noise}{STEP} DUE TO PREEMPTION ***\n"
    (tmp_path / "17_0_log.err").write_text(f"{STEP} ***\n{START_MARK} 17.0\n{said_by_slurm}")
    (tmp_path / "17_1_log.err").touch()
    (tmp_path / "17_2_log.err").mkdir()
    assert after.step_words(tmp_path, TURN) == said_by_slurm[-65_536:]
    said(run, 1, REQUEUE)
    assert conclude(run, TURN, ENDING, 0, tmp_path, 0.0) == REQUEUE
    assert last(run, ev.PREEMPTED)["class"] == "preempted"


@pytest.mark.parametrize("saves", [True, False])
def test_time_limit_after_time_limit_ends_only_what_saves_nothing(
    run: Run, tmp_path: Path, saves: bool
) -> None:
    """A job without checkpoints, such as `shard`."""
    place = run.root.sub("data/tiny")
    codes = []
    for attempt in range(1, FRUITLESS_LIMITS + 2):
        if attempt > 1:
            started(run, attempt)
        there = len(place.objects())
        run.event(ev.PIECES, writer="worker", attempt=attempt, place=place.uri, there=there)
        if saves:
            place.put(f"train-{attempt:06d}.tar", b"x")
        said(run, attempt, REQUEUE)
        codes.append(conclude(run, Turn("17", attempt - 1, 1), NEAR, 0, tmp_path, 0.0))
        if codes[-1] != REQUEUE:
            break
    assert codes == ([REQUEUE] * (FRUITLESS_LIMITS + 1) if saves else [REQUEUE, REQUEUE, 2])
    if not saves:
        words = "attempt after attempt ends without anything new saved: raise `time`"
        assert last(run, ev.FAILED)["reason"] == words


def test_a_failure_that_is_settled_twice_counts_once(run: Run) -> None:
    """The store goes away after the verdict is recorded, and all is done once more."""
    crash, budget = Verdict("failed", FailureClass.CRASH, "why"), RetryBudget(crash=1)
    for _ in range(2):
        settled = settle(run, 1, crash, budget, NotifyConfig(), patience=0.0)
        assert settled.again
        assert settled.pause == 0.25
    assert open_attempt(run, Turn("17", 1, 1)) == 2
    assert not settle(run, 2, crash, budget, NotifyConfig(), patience=0.0).again


def test_a_cancel_between_two_attempts_is_carried_out_before_the_requeue(run: Run) -> None:
    settled = settle(run, 1, Verdict("stopped"), CLUSTER.retries, NotifyConfig(), patience=0.0)
    assert settled.again
    run.event(ev.CANCEL_REQUESTED, writer="client", attempt=1)
    assert open_next(run, TURN, CLUSTER) == 5
    assert stand(run) is RunState.CANCELLED


def test_the_next_attempt_is_opened_for_the_next_start(run: Run) -> None:
    assert open_next(run, TURN, CLUSTER) == REQUEUE
    assert read_job(run, 2) == {"job": "17", "restarts": 1}


def test_nodes_that_could_not_reach_the_store_are_a_failure_of_the_store(
    run: Run, tmp_path: Path
) -> None:
    assert conclude(run, TURN, RUNNING, 3, tmp_path, 0.0) == REQUEUE
    assert last(run, ev.FAILED)["class"] == "storage"


@pytest.fixture
def in_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Path]:
    """The environment of a job's only node; the folder of the run. Signals are given back."""
    caplog.set_level(logging.INFO, logger="igpt")
    folder = tmp_path / "run"
    folder.mkdir()
    for name, value in {
        "SLURM_JOB_ID": "17",
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
        "IGPT_FOLDER": str(folder),
    }.items():
        monkeypatch.setenv(name, value)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield folder
    for number, handler in before.items():
        signal.signal(number, handler)


#: There are no credentials for it.
AWAY = "s3://bucket/store/runs/tiny-1a2b3c4d"


def test_a_store_that_the_nodes_cannot_reach_does_not_requeue_a_job_for_ever(
    in_job: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codes = [after.main(AWAY, 1, 3, patience=0.0) for _ in range(STARTS_WITHOUT_STORE + 1)]
    assert codes == [REQUEUE] * STARTS_WITHOUT_STORE + [3]
    assert "the job is not started again" in caplog.messages[-1]


def test_a_store_that_is_back_begins_the_count_anew(in_job: Path, run: Run) -> None:
    for _ in range(STARTS_WITHOUT_STORE):
        assert after.main(AWAY, 1, 3, patience=0.0) == REQUEUE
    said(run, 1, REQUEUE)
    assert after.main(run.uri, 1, 0, patience=0.0) == REQUEUE
    assert list(in_job.iterdir()) == []
    assert after.main(AWAY, 1, 3, patience=0.0) == REQUEUE


def test_a_count_that_cannot_be_kept_ends_the_job(
    in_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_FOLDER", str(in_job / "not-there"))
    assert after.main(AWAY, 1, 3, patience=0.0) == 3


def test_a_node_that_cannot_reach_the_store_says_so_in_a_line(
    in_job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node, "_STORE_SECONDS", 0.0)
    assert node.main(AWAY, 1) == 3
    assert "credentials" in caplog.messages[-1]
