"""The parent of a node's ranks where they do not do as they are told; ranks without peers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from igpt.clusters import cancel, status
from igpt.clusters.network import free_port
from igpt.clusters.ranks import watch
from igpt.clusters.ranks.exits import read_exits, write_exits
from igpt.clusters.ranks.requests import HANG, PEERS, Requests, hang_key
from igpt.clusters.ranks.start import START_SECONDS, Ranks, send
from igpt.clusters.ranks.watch import run_ranks
from igpt.clusters.submission import propose
from igpt.config import load
from igpt.jobs import find_job
from igpt.runs import Run
from igpt.runs.failures import FailureClass, RankExit, classify
from igpt.runs.record import create_run
from igpt.storage import Store
from tests.support import study


def unstarted(root: Store) -> Run:
    """A pretraining that nobody looks after."""
    job = find_job("pretrain")
    config = load(job.config, study.TRAINING, "test.yaml", ["schedule.steps=100000"])
    spec = propose(root, job, config, study.cluster(), folder=Path("/"), arguments=[]).spec
    run, _ = create_run(
        root, job=job.name, name="test", config=spec.config, inputs=spec.inputs, status=status
    )
    return run


def test_a_rank_gives_its_peers_up_only_after_a_stuck_one_would_have_been_found(
    root: Store,
) -> None:
    ranks = Ranks(
        workers=2, master_port=1, heartbeat_seconds=15, grace_seconds=1, hang_seconds=1800
    )
    assert ranks.exchange_seconds > 1800 + START_SECONDS + 2 * ranks.heartbeat_seconds
    run = study.start(root, study.cluster(), "schedule.steps=100000")
    study.reached(run, 5)
    cancel(run)
    study.ended(run)
    alone = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "IGPT_EXCHANGE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    done = subprocess.run(
        [sys.executable, "-m", "igpt.jobs.worker", run.uri, "2"],
        env=os.environ | alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "rank 0 of 2 waited 2 s for the others" in done.stderr


def test_a_rank_that_cannot_be_killed_is_given_up(
    root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test can make a process that waits inside the kernel: here the signal gets lost."""
    run = unstarted(root)
    ranks = Ranks(workers=1, master_port=free_port(), heartbeat_seconds=0.2, grace_seconds=0.5)
    lost: list[subprocess.Popen[bytes]] = []

    def losing(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
        lost.append(process)
        send(process, signal.SIGSTOP)

    monkeypatch.setattr(watch, "send", losing)
    monkeypatch.setattr(watch, "_KILLED_SECONDS", 0.5)

    def asked() -> str | None:
        beat = run.heartbeat()
        return "cancelled" if beat and beat.progress.get("done", 0) > 1 else None

    try:
        exits = run_ranks(run, 1, ranks, asked)
        (rank,) = exits
        assert rank.reason == "rank 0 cannot be killed: it waits inside the kernel"
        assert classify(exits).failure is FailureClass.HANG
        assert lost[0].poll() is None
    finally:
        for process in lost:
            send(process, signal.SIGKILL)
            process.wait()


def test_a_node_whose_ranks_hang_says_so_before_it_kills_them(
    root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once those of another node have ended, the scheduler may kill the parent at any moment."""
    run = unstarted(root)
    ranks = Ranks(
        workers=1, master_port=free_port(), heartbeat_seconds=15, grace_seconds=1, node=1, nodes=2
    )
    said: list[list[RankExit] | None] = []
    kill = watch._Watch.kill

    def killing(watched: watch._Watch) -> None:
        if watched.alive():
            said.append(read_exits(run, 1, 1))
        kill(watched)

    monkeypatch.setattr(watch._Watch, "kill", killing)
    run_ranks(run, 1, ranks, lambda: HANG)
    assert said[0] is not None
    (rank,) = said[0]
    assert (rank.rank, rank.failure, rank.torn_down) == (1, FailureClass.HANG, False)
    assert "rank 1 " in rank.reason


def test_a_hang_counts_for_more_than_ranks_that_have_ended_of_it(root: Store) -> None:
    run = unstarted(root)
    write_exits(run, 1, 0, [RankExit(0, -9)], bad=True)

    def seen() -> str | None:
        return Requests(run, 0.0, bad_news=["exits-0000-bad.json"], signals=False).of(1)

    assert seen() == PEERS
    run.record.put(hang_key(1), b"{}")
    assert seen() == HANG
