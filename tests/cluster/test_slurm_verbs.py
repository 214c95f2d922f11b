"""Every verb of the command line around runs of a real Slurm: what it prints, how it exits.

What an administrator does to a job is here too, with what `status` then says of it.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters import status
from igpt.config import dump_yaml
from igpt.runs import Run, find_run
from igpt.runs import events as ev
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.cli.command import igpt
from tests.cluster import scenario
from tests.cluster.scenario import LONG, LONGER, where
from tests.support import study
from tests.support.schemas import validated
from tests.support.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("slow_disk")]

TINY = ("model.preset=null", "model.layers=1", "model.width=8", "model.heads=1")
PRETRAIN = (
    *("pretrain", "data=data/digits", *TINY, "batch.global=12", "validation.every=100000"),
    *("checkpoints.every_steps=50", "schedule.warmup=2", "sync_every=2"),
)
ENDLESS = (*PRETRAIN, "schedule.steps=1000000")

#: Slurm's own limit on memory: it looks every second, and kills the step that has too much.
MEMORY_LIMITS = {
    "nodes": 1,
    "settings": (
        "SelectTypeParameters=CR_Core_Memory",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherParams=OverMemoryKill",
        "JobAcctGatherFrequency=task=1",
    ),
}
#: What a cancelled job has until it is killed: more than it needs on any machine.
PATIENT = {"settings": ("KillWait=120",)}


class Jobs:
    """`igpt-jobs` in a folder with a store and a cluster file."""

    def __init__(self, root: Store, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.cluster("cluster")

    def cluster(self, name: str, **fields: Any) -> str:
        """Writes a cluster file, as `scenario.where` has it but for these fields."""
        path = self.folder / f"{name}.yaml"
        path.write_text(dump_yaml(where(self.folder, **fields)))
        return str(path)

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a verb prints; fails where it exits otherwise than with `code`."""
        ended = igpt(*arguments, folder=self.folder, store=self.root.uri)
        assert ended.returncode == code, (arguments, ended.stdout, ended.stderr)
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr if code else ended.stdout

    def json(self, verb: str, *arguments: str, code: int = 0) -> Any:
        """The document that a verb prints, which is what its schema says."""
        ended = igpt(verb, *arguments, "--json", folder=self.folder, store=self.root.uri)
        assert ended.returncode == code, (verb, arguments, ended.stderr)
        return validated(verb, ended.stdout)

    def submit(self, *arguments: str, cluster: str = "cluster.yaml") -> Run:
        """The run that a submission starts."""
        made = self.json("submit", *arguments, "--cluster", cluster)
        assert made["created"]
        return find_run(self.root, made["run"])

    @contextmanager
    def beside(self, *arguments: str) -> Iterator["Beside"]:
        """A verb that goes on while the test does."""
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".txt", delete=False) as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "igpt.cli", *arguments, "--store", self.root.uri],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A shell's background jobs, and so all tests started by one, ignore interrupts.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            try:
                yield Beside(process, Path(output.name))
            finally:
                process.kill()
                process.wait()


class Beside:
    """A verb at work."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self.process, self._output = process, output

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def code(self) -> int:
        """Its exit code, once it has ended."""
        study.until(lambda: self.process.poll() is not None, f"it ends: {self.said}", 240)
        code: int = self.process.returncode
        return code


@pytest.fixture
def jobs(root: Store, tmp_path: Path) -> Jobs:
    """The command line, with the digits in the store and a cluster file beside it."""
    return Jobs(root, tmp_path)


@pytest.fixture
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the undisturbed run."""
    return scenario.yardstick(digits, scenario.base_folder(tmp_path_factory), *LONG)


def gone(slurm: SlurmCluster, job: str) -> bool:
    """Whether a job has left the queue."""
    return job not in slurm.squeue("--format=%i").split()


def of_rank(text: str, rank: int) -> list[str]:
    """The lines of one rank, in order."""
    return [line for line in text.splitlines() if line.startswith(f"[{rank}] ")]


@pytest.mark.long
def test_who_looks_on_sees_a_run_wait_work_break_and_finish(
    private_slurm: SlurmCluster, jobs: Jobs
) -> None:
    held = jobs.cluster("held", sbatch={"hold": True})
    run = jobs.submit(*PRETRAIN, "schedule.steps=400", cluster=held)
    job = scenario.job(run)
    waits = f"Slurm job {job} is PENDING (JobHeldUser)"
    assert jobs.run("status", run.id).splitlines()[0] == f"{run.id}  queued: {waits}"
    (row,) = jobs.json("list", "--state", "queued")
    assert (row["run"], row["reason"]) == (run.id, waits)
    refused = jobs.run("delete", run.id, "--yes", code=2)
    assert f"igpt-jobs cancel {run.id}" in refused

    with (
        jobs.beside("watch", run.id) as watched,
        jobs.beside("watch", run.id, "--json") as machine,
        jobs.beside("logs", run.id, "-f") as all_ranks,
        jobs.beside("logs", run.id, "-f", "--rank", "1") as one_rank,
        jobs.beside("status", run.id, "--wait") as waiting,
    ):
        study.until(lambda: waits in watched.said, "watch says why it waits")
        private_slurm.output("scontrol", "release", job)
        study.reached(run, 100)
        assert jobs.run("status", run.id).startswith(f"{run.id}  running\n")
        study.send([scenario.ranks(run)[1]], signal.SIGKILL)
        study.until(lambda: scenario.kinds(run)[ev.REQUEUED], "the attempt is over", 60)
        for follower in (watched, machine, all_ranks, one_rank, waiting):
            assert follower.code() == 0, follower.said
        told, looks, followed, second = (
            one.said for one in (watched, machine, all_ranks, one_rank)
        )
    assert status(run).state is RunState.FINISHED, scenario.story(run)
    assert "rank 1 was killed by signal 9" in told
    assert "stalled" not in told + looks + waiting.said
    documents = [validated("watch", line) for line in looks.splitlines()]
    assert [one["outcome"] for one in documents[-1]["attempts"]] == ["failed", "finished"]
    assert documents[-1]["cluster_job"] == job

    everything = jobs.run("logs", run.id)
    assert "steps 400/400" in everything
    for rank in (0, 1):
        assert of_rank(followed, rank) == of_rank(everything, rank) != []
    assert of_rank(second, 1) == of_rank(everything, 1)
    assert of_rank(second, 0) == []
    assert followed.count("--- attempt 1 ---") == followed.count("--- attempt 2 ---") == 1
    lines = jobs.json("logs", run.id, "--attempt", "2", "--rank", "0")["lines"]
    assert {(line["attempt"], line["rank"]) for line in lines} == {(2, 0)}
    ended = jobs.json("status", run.id)
    assert (ended["state"], ended["result"]["step"]) == ("finished", 400)
    assert Path(jobs.json("report", run.id)["report"]).exists()
    assert jobs.json("delete", run.id, "--yes")["objects"] > 0
    assert jobs.json("list") == []


def test_a_run_moves_from_slurm_to_this_machine_and_back_without_a_trace_in_its_losses(
    private_slurm: SlurmCluster, jobs: Jobs, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    straight = scenario.yardstick(digits, scenario.base_folder(tmp_path_factory), *LONGER)
    here = jobs.folder / "here.yaml"
    here.write_text(dump_yaml(study.cluster(workers=2, max_parallel=9)))
    run = study.start(jobs.root, where(jobs.folder), *LONGER)
    first = scenario.job(run)
    study.reached(run, 100)
    assert jobs.json("cancel", run.id, "--wait")["state"] == "cancelled"
    jobs.run("status", run.id, "--wait", code=5)
    study.until(lambda: gone(private_slurm, first), "the job has ended")
    assert private_slurm.job(first)["ExitCode"] == "5:0"
    stopped = max(study.losses(run))

    assert jobs.json("resume", run.id, "--cluster", str(here))["step"] == stopped  # all was saved
    study.reached(run, stopped + 100)
    assert "attempt     2" in jobs.run("status", run.id)
    jobs.run("resume", run.id, "--cluster", "cluster.yaml", code=2)  # it is at work
    jobs.run("resume", run.id, "--cluster", "cluster.yaml", "--force", "--follow")  # taken over

    assert status(run).state is RunState.FINISHED, scenario.story(run)
    assert [claim.attempt for claim in run.claims()] == [1, 2, 3]
    assert study.losses(run) == straight


def test_a_waiting_run_is_cancelled_at_once_and_can_be_taken_up_again(
    private_slurm: SlurmCluster, jobs: Jobs
) -> None:
    held = jobs.cluster("held", sbatch={"hold": True})
    run = jobs.submit(*ENDLESS, cluster=held)
    first = scenario.job(run)
    assert jobs.json("cancel", run.id)["state"] == "cancelled"
    assert gone(private_slurm, first)
    jobs.run("status", run.id, "--wait", code=5)

    assert jobs.json("resume", run.id)["state"] == "queued"
    second = scenario.job(run)
    assert second != first
    private_slurm.output("scontrol", "update", "partition=main", "MaxTime=10")
    private_slurm.output("scontrol", "release", second)
    why = f"queued: Slurm job {second} is PENDING (PartitionTimeLimit)"
    study.until(lambda: why in jobs.run("status", run.id), "it says why it would wait for ever", 60)
    private_slurm.output("scontrol", "update", "partition=main", "MaxTime=INFINITE")
    scenario.running(run)
    jobs.run("cancel", run.id, "--wait")
    assert jobs.json("list")[0]["state"] == "cancelled"


@pytest.mark.parametrize("private_slurm", [{"nodes": 1}], indirect=True)
def test_a_study_submitted_in_one_go_runs_link_by_link(
    private_slurm: SlurmCluster, jobs: Jobs
) -> None:
    one = jobs.cluster("one", workers=1, nodes=1, cpus_per_worker=2)
    held = jobs.cluster("held", workers=1, nodes=1, sbatch={"hold": True})
    pretraining = jobs.submit(*PRETRAIN, "schedule.steps=20", cluster=held)
    after = ("--after", pretraining.id)
    features = jobs.submit("features", f"model={pretraining.id}", *after, cluster=one)
    drawn = jobs.submit(
        *("generate", f"model={pretraining.id}", "samples=4", "completions=2"), *after, cluster=one
    )
    probe = jobs.json(
        *("sweep", "probe", f"model={pretraining.id}", "budgets=[40]", "l2=[1e-3]", "seeds=[1]"),
        *("ray.cpus=1", "--after", features.id, "--cluster", one),
    )
    assert "Dependency" in jobs.run("status", probe["run"])
    private_slurm.output("scontrol", "release", scenario.job(pretraining))
    jobs.run("status", probe["run"], "--wait")
    swept = find_run(jobs.root, probe["run"])
    jobs.run("status", drawn.id, "--wait")
    for run in (pretraining, features, drawn, swept):
        assert status(run).state is RunState.FINISHED, scenario.story(run)
        assert len(run.claims()) == 1
    assert swept.record.exists("probe/rows.json")


@pytest.mark.parametrize("private_slurm", [PATIENT], indirect=True)
def test_a_job_that_an_administrator_cancels_saves_and_stays_cancelled(
    private_slurm: SlurmCluster, jobs: Jobs, straight: dict[int, float]
) -> None:
    run = study.start(jobs.root, where(jobs.folder), *LONG)
    job = scenario.job(run)
    study.reached(run, 100)
    private_slurm.output("scancel", job)
    jobs.run("status", run.id, "--wait", code=5)
    study.until(lambda: gone(private_slurm, job), "the job has ended")
    assert private_slurm.job(job)["JobState"] == "CANCELLED"  # and did not bring itself back
    assert scenario.last(run, ev.CANCEL_REQUESTED)["by"] == "scancel"
    assert jobs.json("resume", run.id)["step"] == max(study.losses(run))
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert study.losses(run) == straight


def test_a_job_that_is_taken_away_without_a_word_is_a_stalled_run(
    private_slurm: SlurmCluster, jobs: Jobs
) -> None:
    held = jobs.cluster("held", sbatch={"hold": True})
    run = jobs.submit(*ENDLESS, cluster=held)
    private_slurm.output("scancel", scenario.job(run))
    assert "ended as CANCELLED" in jobs.run("status", run.id, "--wait", code=6)

    jobs.run("resume", run.id, "--cluster", "cluster.yaml")
    scenario.running(run)
    job = scenario.job(run)
    private_slurm.output("scancel", "--signal=KILL", "--batch", job)
    study.until(lambda: gone(private_slurm, job), "the job has ended")
    told = jobs.run("status", run.id, "--wait", code=6)
    assert f"Slurm job {job} ended as " in told
    assert f"igpt-jobs resume {run.id}" in told


def test_a_job_that_an_administrator_requeues_and_holds_goes_on_when_released(
    private_slurm: SlurmCluster, jobs: Jobs, straight: dict[int, float]
) -> None:
    run = study.start(jobs.root, where(jobs.folder), *LONG)
    job = scenario.job(run)
    study.reached(run, 100)
    private_slurm.output("scontrol", "requeuehold", job)
    study.until(lambda: private_slurm.job(job)["JobState"] == "PENDING", "the job waits", 120)
    told = jobs.run("status", run.id).splitlines()[0]
    assert told.startswith(f"{run.id}  queued: ")
    assert f"Slurm job {job} is PENDING (" in told
    private_slurm.output("scontrol", "release", job)
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert len(run.claims()) == 2
    assert scenario.kinds(run)[ev.FAILED] == 0
    assert study.losses(run) == straight


def test_where_accounts_are_kept_they_say_who_ended_a_job(
    accounting_slurm: SlurmCluster, jobs: Jobs
) -> None:
    held = jobs.cluster("held", sbatch={"hold": True})
    run = jobs.submit(*ENDLESS, cluster=held)
    accounting_slurm.output("scancel", scenario.job(run))
    by = f"stalled: its supervisor is gone (Slurm job {scenario.job(run)} ended as CANCELLED by "
    # Until the accounts have it, the controller's own memory answers, which does not say by whom.
    study.until(lambda: f"{by}{os.getuid()}" in jobs.run("status", run.id), "sacct has it", 60)


@pytest.mark.parametrize("private_slurm", [MEMORY_LIMITS], indirect=True)
def test_a_step_that_slurm_kills_for_its_memory_is_out_of_memory(
    private_slurm: SlurmCluster, jobs: Jobs
) -> None:
    tight = jobs.cluster(
        *("tight",), workers=1, nodes=1, mem="150M", retries={"out_of_memory": 1}
    )  # a worker that has imported torch has more
    run = jobs.submit(*ENDLESS, cluster=tight)
    told = jobs.run("status", run.id, "--wait", code=1)
    assert "out-of-memory: out of memory, in Slurm's words: " in told
    assert "exceeded memory limit" in told
    classes = [event.fields["class"] for event in run.events({ev.FAILED})]
    assert classes == ["out-of-memory", "out-of-memory"]  # it was tried again, once


def test_the_exit_code_says_how_a_run_ended(private_slurm: SlurmCluster, jobs: Jobs) -> None:
    frail = jobs.cluster("frail", retries={"node": 0})
    nowhere = jobs.cluster("nowhere", partition="nowhere")

    ended = jobs.json("submit", *PRETRAIN, "schedule.steps=20", "--cluster", frail, "--follow")
    assert ended["state"] == "finished"
    again = jobs.json("submit", *PRETRAIN, "schedule.steps=20", "--cluster", frail)
    assert (again["run"], again["created"]) == (ended["run"], False)

    said = jobs.run("submit", *ENDLESS, "--cluster", nowhere, code=2)
    assert "invalid partition" in said.lower()
    assert [row["run"] for row in jobs.json("list")] == [ended["run"]]  # nothing is left of it

    jobs.run("status", "no-such-run", code=4)

    with jobs.beside("submit", *ENDLESS, "--cluster", frail, "--follow") as followed:
        study.until(lambda: " running" in followed.said, "it runs")
        run = find_run(jobs.root, jobs.json("list", "--state", "running")[0]["run"])
        followed.process.send_signal(signal.SIGINT)
        assert followed.code() == 130
        assert f"{run.id} goes on without you" in followed.said
    assert status(run).state is RunState.RUNNING
    study.reached(run, 50)
    study.send([scenario.ranks(run)[0]], signal.SIGKILL)
    told = jobs.run("status", run.id, "--wait", code=1)
    assert f"{run.id}  failed: node: rank 0 was killed by signal 9" in told

    private_slurm.stop_controller()
    away = jobs.run("submit", *ENDLESS, "--new", "--cluster", frail, code=3)
    assert "Slurm cannot be reached" in away
