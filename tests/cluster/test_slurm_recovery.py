"""What a run survives on a real Slurm of two nodes and more, each with its own network.

Preemption, three time limits, a killed rank, a lost node, a stuck rank, a user's error, a
controller that restarts: each with its outcome, its attempts, and losses that are bit for bit those
of a run that nothing happened to.
"""

import json
import signal
from pathlib import Path

import pytest

from igpt.clusters import cancel, status
from igpt.jobs.references import committed_checkpoints
from igpt.runs import events as ev
from igpt.runs.logs import log_parts
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.cluster import scenario
from tests.cluster.scenario import LONG, LONGER, where
from tests.support import study
from tests.support.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("slow_disk")]


@pytest.fixture
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the undisturbed run."""
    return scenario.yardstick(digits, scenario.base_folder(tmp_path_factory), *LONG)


def test_a_more_important_job_gets_the_nodes_and_the_run_goes_on_after_it(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path, straight: dict[int, float]
) -> None:
    run = study.start(root, where(tmp_path), *LONG)
    study.until(lambda: scenario.trained(run, 50), "it trains")
    other = private_slurm.submit("sleep 3", "--partition=high", "--nodes=2", "--exclusive")
    study.until(lambda: scenario.kinds(run)[ev.PREEMPTED], "it is preempted")
    assert scenario.last(run, ev.PREEMPTED)["class"] == "preempted"
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert private_slurm.job(other)["JobState"] == "COMPLETED"
    assert scenario.kinds(run)[ev.FAILED] == 0
    first, second = run.claims()
    assert 50 <= second.start_step < 400
    assert scenario.last_step(run, 1) == second.start_step  # it saved on the way out
    assert first.start_step == 0
    assert study.losses(run) == straight


@pytest.mark.parametrize(
    "private_slurm", [{"settings": ("PreemptMode=CANCEL", "KillWait=30")}], indirect=True
)
def test_a_site_that_cancels_what_it_preempts_does_not_end_the_run(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path
) -> None:
    private_slurm.output("scontrol", "update", "PartitionName=main", "GraceTime=0")
    run = study.start(root, where(tmp_path), *LONG)
    study.until(lambda: scenario.trained(run, 50), "it trains")
    private_slurm.submit("sleep 1", "--partition=high", "--nodes=2", "--exclusive")
    study.until(lambda: len(run.claims()) == 2, "it goes on after the other job", 120)
    assert scenario.last(run, ev.PREEMPTED)["class"] == "preempted", scenario.story(run)
    assert scenario.kinds(run)[ev.CANCEL_REQUESTED] == scenario.kinds(run)[ev.FAILED] == 0
    assert run.claims()[1].start_step == scenario.last_step(run, 1) >= 50


@pytest.mark.long
def test_a_run_longer_than_its_time_limit_takes_as_many_as_it_needs(
    private_slurm: SlurmCluster,
    digits: Path,
    root: Store,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLOW_DISK", "0.2")
    longer = (*LONG, "schedule.steps=1800", "checkpoints.every_steps=5000")
    # Of one minute, a machine with much to do would need more than is left for it to start.
    run = study.start(root, where(tmp_path, time="2", grace_seconds=15), *longer)
    straight = scenario.yardstick(digits, scenario.base_folder(tmp_path_factory), *longer)
    assert scenario.ended(run, 800).state is RunState.FINISHED, scenario.story(run)
    claims = run.claims()
    assert len(claims) >= 3, scenario.story(run)
    classes = [event.fields["class"] for event in run.events({ev.PREEMPTED})]
    assert set(classes) == {"timeout"}
    assert len(classes) == len(claims) - 1
    assert scenario.kinds(run)[ev.FAILED] == 0
    assert study.losses(run) == straight


def test_a_cancelled_run_has_saved_its_last_step(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path
) -> None:
    run = study.start(root, where(tmp_path), *LONG, "checkpoints.every_steps=5000")
    study.until(lambda: scenario.trained(run, 50), "it trains")
    cancel(run)
    assert scenario.ended(run).state is RunState.CANCELLED, scenario.story(run)
    saved = scenario.last(run, ev.CHECKPOINTED)["step"]
    assert saved == scenario.last_step(run, 1) >= 50


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_costs_an_attempt_and_no_step(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path, straight: dict[int, float], rank: int
) -> None:
    run = study.start(root, where(tmp_path), *LONG)
    study.reached(run, 100)
    study.send([scenario.ranks(run)[rank]], signal.SIGKILL)
    study.until(lambda: scenario.kinds(run)[ev.FAILED], "the attempt is over", 30)
    failed = scenario.last(run, ev.FAILED)
    assert (failed["class"], failed["final"]) == ("node", False)
    assert failed["reason"] == f"rank {rank} was killed by signal 9"
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert len(run.claims()) == 2
    assert study.losses(run) == straight


@pytest.mark.long
@pytest.mark.parametrize("private_slurm", [3], indirect=True)
@pytest.mark.parametrize("batch_host", [True, False], ids=["batch-host", "other-node"])
def test_a_node_that_is_cut_off_is_fenced_and_the_run_goes_on_without_it(
    private_slurm: SlurmCluster,
    root: Store,
    tmp_path: Path,
    straight: dict[int, float],
    batch_host: bool,
) -> None:
    run = study.start(root, where(tmp_path), *LONG, "checkpoints.every_steps=50")
    study.reached(run, 100)
    hosts = scenario.hosts(private_slurm, run)
    lost = hosts[0] if batch_host else hosts[1]
    private_slurm.cut(lost)
    study.until(lambda: len(run.claims()) == 2, "another attempt begins", 180)
    failed = scenario.last(run, ev.FAILED)
    assert (failed["class"], failed["final"]) == ("node", False), failed
    assert lost not in scenario.hosts(private_slurm, run)
    study.until(lambda: not private_slurm.pids(lost, "igpt.jobs.worker"), "the old ranks end", 120)
    old = {key for key in scenario.written(run.record) if "attempts/0001" in key}
    checkpoints = [one for one in committed_checkpoints(run) if one[1] == 1]
    private_slurm.mend(lost)
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    study.until(lambda: private_slurm.node_state(lost) == "IDLE", "the node is back", 60)
    assert {key for key in scenario.written(run.record) if "attempts/0001" in key} == old
    late = [one for one in committed_checkpoints(run) if one[1] == 1 and one not in checkpoints]
    assert late == []
    assert study.losses(run) == straight


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stuck_is_found_and_every_rank_says_where_it_stood(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path, straight: dict[int, float], rank: int
) -> None:
    run = study.start(root, where(tmp_path, hang_seconds=8), *LONG)
    study.reached(run, 100)
    study.send([scenario.ranks(run)[rank]], signal.SIGSTOP)
    study.until(lambda: scenario.kinds(run)[ev.FAILED], "the hang is found", 60)
    failed = scenario.last(run, ev.FAILED)
    assert (failed["class"], failed["final"]) == ("hang", False), failed
    assert f"rank {rank} is stopped" in failed["reason"]
    logs = {part.rank: "" for part in log_parts(run.record, 1)}
    for part in log_parts(run.record, 1):
        logs[part.rank] += run.record.get(part.key).decode()
    assert "igpt/training/loop.py" in logs[1 - rank]  # it waits for the one that is stopped
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert len(run.claims()) == 2
    assert study.losses(run) == straight


def test_a_users_error_ends_the_run_at_once_and_is_not_tried_again(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path
) -> None:
    heard = tmp_path / "heard"
    notice = {"command": ("sh", "-c", f"cat > {heard}")}
    run = study.start(root, where(tmp_path, sbatch={"hold": True}, notify=notice))
    assert status(run).state is RunState.QUEUED
    assert "JobHeldUser" in status(run).reason
    root.delete([info.key for info in root.objects("data/digits")])
    private_slurm.output("scontrol", "release", scenario.job(run))
    end = scenario.ended(run)
    assert (end.state, end.exit_code) == (RunState.FAILED, 2)
    assert end.reason.startswith("user-error")
    assert len(run.claims()) == 1
    study.until(
        lambda: private_slurm.job(scenario.job(run))["JobState"] == "FAILED", "the job ends", 30
    )
    assert private_slurm.job(scenario.job(run))["ExitCode"] == "2:0"
    told = json.loads(heard.read_text())
    assert (told["run"], told["state"]) == (run.id, "failed")


def test_a_controller_that_crashes_and_comes_back_does_not_touch_the_run(
    private_slurm: SlurmCluster,
    digits: Path,
    root: Store,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    straight = scenario.yardstick(digits, scenario.base_folder(tmp_path_factory), *LONGER)
    run = study.start(root, where(tmp_path), *LONGER)
    study.reached(run, 100)
    private_slurm.stop_controller(crash=True)
    before = max(step for step, _ in committed_checkpoints(run))
    study.until(
        lambda: max(step for step, _ in committed_checkpoints(run)) > before, "it trains on"
    )
    assert status(run).state is RunState.RUNNING  # by its own record: Slurm cannot be asked
    private_slurm.start_controller()
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert len(run.claims()) == 1
    assert study.losses(run) == straight
