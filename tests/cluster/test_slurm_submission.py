"""What happens around a submission to a real Slurm, whatever becomes of the client meanwhile.

A client is killed before and after everything that it writes, and around sbatch: never do two jobs
work on a run, and the run finishes in the end. Jobs are held in Slurm's queue while the test looks.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters import Submission, cancel, resume, status, submit
from igpt.clusters.base import Launch
from igpt.clusters.kinds import backend_of
from igpt.clusters.slurm.backend import SLURM, recorded_job
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.place import job_folder
from igpt.clusters.steering import code_of
from igpt.config import dump_yaml, load
from igpt.errors import Superseded, UserError
from igpt.jobs import find_job
from igpt.runs import Run, find_run
from igpt.runs import events as ev
from igpt.runs import state as run_state
from igpt.runs.attempts import attempt_numbers
from igpt.runs.reading import read_json
from igpt.runs.record import open_run
from igpt.runs.state import RunState, Status
from igpt.storage import Store, open_store
from tests.cli.command import igpt
from tests.cluster import scenario
from tests.cluster.scenario import LONG
from tests.support import source_tree, study
from tests.support.slurm import Slurm
from tests.support.slurm_cluster import SlurmCluster as RealSlurm

pytestmark = pytest.mark.timeout(900)

STEPS = 4
TINY = (f"schedule.steps={STEPS}", f"validation.every={STEPS}", "schedule.warmup=1")

#: `igpt-jobs`, killed before or after its write of this number; says each time what it writes.
CLIENT = """
import os, signal, sys
from igpt.cli import main
from igpt.storage.directory import DirectoryStore

when, last = sys.argv[1], int(sys.argv[2])
sys.argv = ["igpt-jobs", *sys.argv[3:]]
count = 0

def counted(write):
    def wrapped(store, key, *rest):
        global count
        count += 1
        print(key, flush=True)
        if (when, last) == ("before", count):
            os.kill(os.getpid(), signal.SIGKILL)
        written = write(store, key, *rest)
        if (when, last) == ("after", count):
            os.kill(os.getpid(), signal.SIGKILL)
        return written
    return wrapped

for name in ("put", "create", "upload"):
    setattr(DirectoryStore, name, counted(getattr(DirectoryStore, name)))
main()
"""

#: What `submit` writes, in this order; sbatch comes before job.json. A store is tried twice first.
SUBMIT = (
    *("check", "check", "spec.yaml", "provenance.json", "code"),
    *("submitted", "submitted", "cluster.yaml", "job.json", "launched", "queued"),
)
#: And `resume`. An event that changes the state leaves a hint in the index as well.
RESUME = ("submitted", "submitted", "cluster.yaml", "job.json", "launched", "queued")


def where(folder: Path, **fields: Any) -> SlurmCluster:
    """One worker on one node, held in the queue until it is released."""
    given = {"workers": 1, "nodes": 1, "cpus_per_worker": 2, "sbatch": {"hold": True}}
    return scenario.where(folder, **given | fields)


def recipes(folder: Path, cluster: SlurmCluster) -> None:
    """What a user has in the folder where he types."""
    (folder / "tiny.yaml").write_text(f"job: pretrain\n{study.TRAINING}")
    (folder / "slurm.yaml").write_text(dump_yaml(cluster))


def submission(store: Store, cluster: SlurmCluster, *overrides: str) -> Submission:
    """The same that the command line submits as `tiny`."""
    job = find_job("pretrain")
    config = load(job.config, study.TRAINING, "tiny.yaml", overrides or TINY)
    return submit(store, job, config, cluster, folder=Path("/"), arguments=["t"], name="tiny")


def after(store: Store, cluster: SlurmCluster, first: Run) -> Submission:
    """Draws an image from a model that another run has still to make."""
    job = find_job("generate")
    config = load(job.config, f"model: {first.id}\nsamples: 1\ncompletions: 0", "drawn.yaml")
    return submit(
        store,
        job,
        config,
        cluster,
        folder=Path("/"),
        arguments=["test"],
        name="drawn",
        after=[first],
    )


def killed_at(write: int, when: str, folder: Path, *arguments: str) -> str | None:
    """Which write the client was killed at; None where it came to its end before that."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, when, str(write), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode == 0:
        return None
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.splitlines()[-1]


def kind(key: str) -> str:
    """What a key is, without what differs from run to run."""
    name = key.rpartition("/")[2]
    if key.startswith(("index/", "events/")):
        return re.split("[-.]", name.removesuffix(".json"))[-1]
    return "code" if key.startswith("code/") else re.sub("^igpt-check-.*", "check", name)


def jobs(slurm: Slurm, run: Run, cluster: SlurmCluster) -> dict[str, str]:
    """The state of every job that Slurm has, or remembers, of a run."""
    lines = slurm.squeue("--states=all", "--format=%i|%T|%Z").splitlines()
    found = [line.split("|", 2) for line in lines]
    folder = str(job_folder(cluster, run.uri))
    return {job: state for job, state, place in found if place == folder}


def waiting(slurm: Slurm, run: Run, cluster: SlurmCluster) -> list[str]:
    """The jobs of a run that are in the queue."""
    return [job for job, state in jobs(slurm, run, cluster).items() if state == "PENDING"]


def stands(run: Run) -> RunState:
    """The state of a run, by a new look at Slurm."""
    SLURM.forget()
    return status(run).state


def with_reason(run: Run, word: str) -> Status | None:
    """The status once its reason has this word in it."""
    SLURM.forget()
    now = status(run)
    return now if word in now.reason else None


def adopt(run: Run, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumes a run whose client died before it had called sbatch, once that counts as certain."""
    with monkeypatch.context() as patch:
        patch.setattr(run_state, "LAUNCH_GRACE", 3600.0)
        assert stands(run) is RunState.SUBMITTED
        with pytest.raises(UserError, match="is submitted"):
            resume(run)
        patch.setattr(run_state, "LAUNCH_GRACE", 0.0)
        now = status(run)
        assert (now.state, now.exit_code) == (RunState.STALLED, 6)
        assert now.reason.startswith("recorded, but never launched")
        recorded = any(
            run.record.exists(f"attempts/{number:04d}/cluster.yaml")
            for number in attempt_numbers(run.record)
        )
        if not recorded:
            with pytest.raises(UserError, match="--cluster FILE"):
                resume(run)
        resume(run, None if recorded else cluster)


def assert_queued(run: Run) -> None:
    """The run waits in Slurm's queue, whoever recorded that, and so is not to be resumed."""
    study.until(lambda: stands(run) is RunState.QUEUED, f"{run.id} is queued", 60)
    with pytest.raises(UserError, match="is queued"):
        resume(run)


def all_finish(slurm: Slurm, runs: list[Run], cluster: SlurmCluster) -> None:
    """Every run has one job in the queue; released, it does the work, once, and nobody else."""
    held = [waiting(slurm, run, cluster) for run in runs]
    assert [len(found) for found in held] == [1] * len(runs)
    slurm.output("scontrol", "release", ",".join(job for found in held for job in found))
    for run, (job,) in zip(runs, held, strict=True):
        # Not by its state alone: a controller under load does not answer every question.
        study.until(lambda run=run: run.result(), f"{run.id}: {scenario.story(run)}", 600)
        assert stands(run) is RunState.FINISHED
        assert list(study.losses(run)) == list(range(1, STEPS + 1))
        assert len(run.claims()) == 1
        assert scenario.kinds(run)[ev.STARTED] == 1
        assert {event.fields["job"] for event in run.events({ev.LAUNCHED})} >= {job}
    study.until(lambda: not slurm.squeue(), "the queue is empty", 60)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_client_killed_at_any_write_of_a_submission_leaves_no_double_job(
    private_slurm: RealSlurm,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    cluster = where(tmp_path)
    recipes(tmp_path, cluster)
    runs: list[Run] = []
    for number, write in enumerate([*SUBMIT, None], 1):
        store = open_store(str(shutil.copytree(digits, tmp_path / f"store-{number}")))
        command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes", *TINY)
        key = killed_at(number, when, tmp_path, *command, "--store", store.uri)
        assert (kind(key) if key else None) == write
        done = SUBMIT[: number - (when == "before")]
        submitted = write == "job.json" or "job.json" in done
        before = [open_run(store, name) for name in store.children("runs")]
        assert len(before) == ("spec.yaml" in done)
        again = submission(store, cluster)
        runs.append(again.run)
        assert again.created == (not before)
        if before:
            assert again.run.id == before[0].id
            assert len(waiting(private_slurm, again.run, cluster)) == submitted
            if not submitted:
                adopt(again.run, cluster, monkeypatch)
        assert_queued(again.run)
    all_finish(private_slurm, runs, cluster)


def test_a_client_killed_at_any_write_of_a_resumption_leaves_no_double_job(
    private_slurm: RealSlurm, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = where(tmp_path)
    runs: list[Run] = []
    points = [(when, n) for when in ("before", "after") for n in range(1, len(RESUME) + 1)]
    for when, number in points:
        store = open_store(str(shutil.copytree(digits, tmp_path / f"store-{when}-{number}")))
        run = submission(store, cluster).run
        assert cancel(run).state is RunState.CANCELLED
        key = killed_at(number, when, tmp_path, "resume", run.id, "--store", store.uri)
        assert key is not None
        assert kind(key) == RESUME[number - 1]
        done = RESUME[: number - (when == "before")]
        submitted = RESUME[number - 1] == "job.json" or "job.json" in done
        assert len(waiting(private_slurm, run, cluster)) == submitted
        if not done:
            assert stands(run) is RunState.CANCELLED
            resume(run)
        elif not submitted:
            adopt(run, cluster, monkeypatch)
        assert_queued(run)
        runs.append(run)
    all_finish(private_slurm, runs, cluster)


#: An sbatch that kills the client: and does not submit, then submits, has submitted.
DEADLY = {
    "instead of sbatch": "kill -KILL $PPID",
    "while sbatch submits": 'kill -KILL $PPID; exec {sbatch} "$@"',
    "when sbatch has submitted": '{sbatch} "$@"; kill -KILL $PPID',
}


@pytest.mark.parametrize("when", DEADLY)
def test_a_client_killed_around_sbatch_leaves_a_job_that_is_found_or_a_run_that_is_adopted(
    private_slurm: RealSlurm,
    root: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    cluster = where(tmp_path)
    recipes(tmp_path, cluster)
    deadly = tmp_path / "bin" / "sbatch"
    deadly.parent.mkdir()
    deadly.write_text(f"#!/bin/bash\n{DEADLY[when].format(sbatch=shutil.which('sbatch'))}\n")
    deadly.chmod(0o755)
    command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes", *TINY)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{deadly.parent}{os.pathsep}{os.environ['PATH']}")
        killed = igpt(*command, folder=tmp_path, store=root.uri)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = find_run(root, "tiny-")
    if when == "instead of sbatch":
        again = igpt(*command, folder=tmp_path, store=root.uri)
        said = f"{run.id} does this very work already, and is (submitted|stalled);"
        assert re.match(said, again.stderr)  # stalled after a minute
        adopt(run, cluster, monkeypatch)
    else:
        study.until(lambda: waiting(private_slurm, run, cluster), "the job is in the queue", 60)
        assert scenario.kinds(run)[ev.LAUNCHED] == 0  # nobody could record it
        shown = igpt("status", run.id, folder=tmp_path, store=root.uri)
        (job,) = waiting(private_slurm, run, cluster)
        assert f"queued: Slurm job {job} is PENDING (JobHeldUser)" in shown.stdout
        again = igpt(*command, folder=tmp_path, store=root.uri)
        assert f"{run.id} does this very work already, and is queued" in again.stderr
    assert again.returncode == 0
    all_finish(private_slurm, [run], cluster)
    assert scenario.job(run) == recorded_job(run)


@pytest.mark.parametrize("write", ["cluster.yaml", "job.json"])
def test_what_a_killed_client_left_behind_can_be_cancelled(
    private_slurm: RealSlurm,
    root: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: str,
) -> None:
    cluster = where(tmp_path)
    recipes(tmp_path, cluster)
    number = SUBMIT.index(write) + 1
    command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes", *TINY)
    assert killed_at(number, "before", tmp_path, *command, "--store", root.uri)
    run = find_run(root, "tiny-")
    monkeypatch.setattr(run_state, "LAUNCH_GRACE", 0.0)
    has_job = write == "job.json"
    with monkeypatch.context() as patch:
        silent = tmp_path / "bin" / "squeue"
        silent.parent.mkdir()
        silent.write_text("#!/bin/sh\nexit 1\n")
        silent.chmod(0o755)
        patch.setenv("PATH", f"{silent.parent}{os.pathsep}{os.environ['PATH']}")
        assert stands(run) is RunState.STALLED
        # Without a cluster in the record, there is nobody to ask.
        assert ("Slurm cannot be asked from here" in status(run).reason) == has_job
    assert stands(run) is (RunState.QUEUED if has_job else RunState.STALLED)
    assert cancel(run).state is RunState.CANCELLED
    assert list(jobs(private_slurm, run, cluster).values()) == ["CANCELLED"] * has_job


def test_of_two_clients_that_submit_one_attempt_the_second_takes_its_job_back(
    private_slurm: RealSlurm, root: Store, tmp_path: Path
) -> None:
    cluster = where(tmp_path)
    run = submission(root, cluster).run
    (first,) = waiting(private_slurm, run, cluster)
    with pytest.raises(Superseded, match="another client has submitted attempt 1"):
        backend_of(cluster).submit(run, Launch(run.uri, 1, code_of(run)))
    assert sorted(jobs(private_slurm, run, cluster).values()) == ["CANCELLED", "PENDING"]
    assert waiting(private_slurm, run, cluster) == [first]
    all_finish(private_slurm, [run], cluster)


def test_eight_clients_that_submit_the_same_at_once_come_to_one_job(
    private_slurm: RealSlurm, root: Store, tmp_path: Path
) -> None:
    cluster = where(tmp_path)
    recipes(tmp_path, cluster)
    command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes", *TINY)
    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(igpt, *command, folder=tmp_path, store=root.uri) for _ in range(8)]
        said = [client.result().stderr for client in clients]
    assert [client.result().returncode for client in clients] == [0] * 8, said
    assert sum(text.startswith("submitted tiny-") for text in said) == 1
    assert sum("does this very work already" in text for text in said) == 7
    all_finish(private_slurm, [find_run(root, "tiny-")], cluster)


@pytest.mark.long
@pytest.mark.usefixtures("slow_disk")
def test_fifty_runs_submitted_at_once_are_fifty_jobs_and_all_can_be_cancelled(
    private_slurm: RealSlurm, root: Store, tmp_path: Path
) -> None:
    cluster = where(tmp_path, cpus_per_worker=4, sbatch={})  # two run, the others wait
    recipes(tmp_path, cluster)
    command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes", *LONG[1:])
    endless = (*command, "schedule.steps=1000000")

    def done(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return igpt(*arguments, folder=tmp_path, store=root.uri)

    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(lambda seed: done(*endless, f"seed={seed}"), range(50)))
        assert {client.returncode for client in clients} == {0}, clients[0].stderr
        runs = [open_run(root, name) for name in root.children("runs")]
        assert len(runs) == 50
        assert len({scenario.job(run) for run in runs}) == 50
        assert {stands(run) for run in runs} <= {RunState.QUEUED, RunState.RUNNING}
        listed = [line.split("\t") for line in done("list").stdout.splitlines()]
        assert {name for name, *_ in listed} == {run.id for run in runs}
        assert {state for _, state, *_ in listed} <= {"queued", "running"}
        study.until(lambda: any(scenario.trained(run, 1) for run in runs), "one of them trains")
        cancelled = list(pool.map(lambda run: done("cancel", run.id), runs))
    assert {client.returncode for client in cancelled} == {0}
    for run in runs:
        assert scenario.ended(run, 300).state is RunState.CANCELLED, scenario.story(run)
    study.until(lambda: not private_slurm.squeue(), "the queue is empty", 120)
    assert {stands(run) for run in runs} == {RunState.CANCELLED}


REFUSED = {
    "partition": ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
    "memory": ({"mem": "90G"}, "Memory specification can not be satisfied"),
    "feature": ({"constraint": "infiniband"}, "Invalid feature specification"),
    "gpus": ({"gpus_per_node": 4}, "Invalid generic resource"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_slurm_refuses_is_refused_in_its_words_and_leaves_nothing(
    private_slurm: RealSlurm, root: Store, tmp_path: Path, what: str
) -> None:
    fields, words = REFUSED[what]
    recipes(tmp_path, where(tmp_path, sbatch={}, **fields))
    before = scenario.written(root)
    command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes")
    refused = igpt(*command, folder=tmp_path, store=root.uri)
    assert refused.returncode == 2
    assert "Slurm refused the job" in refused.stderr
    assert words.lower() in refused.stderr.lower()
    assert "Traceback" not in refused.stderr
    left = scenario.written(root) - before
    assert {key.split("/")[0] for key in left} == {"code"}  # all runs share it
    assert not private_slurm.squeue()


def test_a_resumption_that_slurm_refuses_says_so_and_can_be_repeated(
    private_slurm: RealSlurm, root: Store, tmp_path: Path
) -> None:
    cluster = where(tmp_path)
    run = submission(root, cluster).run
    cancel(run)
    with pytest.raises(UserError, match="Slurm refused the job"):
        resume(run, where(tmp_path, partition="nowhere"))
    now = status(run)
    assert (now.state, now.exit_code) == (RunState.FAILED, 2)
    assert now.reason.startswith("user-error: Slurm refused the job")
    resume(run, cluster)
    assert_queued(run)
    all_finish(private_slurm, [run], cluster)


def test_more_nodes_than_there_are_wait_and_status_says_for_what(
    private_slurm: RealSlurm, root: Store, tmp_path: Path
) -> None:
    run = submission(root, where(tmp_path, workers=9, nodes=9, sbatch={})).run
    now = study.until(lambda: with_reason(run, "PartitionConfig"), "Slurm says why", 60)
    assert now.state is RunState.QUEUED
    assert cancel(run).state is RunState.CANCELLED
    assert not private_slurm.squeue()


def test_without_a_controller_nothing_is_lost_and_resume_goes_on_when_it_is_back(
    private_slurm: RealSlurm, root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = where(tmp_path)
    recipes(tmp_path, cluster)
    private_slurm.stop_controller()
    command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes", *TINY)
    refused = igpt(*command, folder=tmp_path, store=root.uri)
    assert refused.returncode == 3
    assert "Slurm cannot be reached" in refused.stderr
    assert "Traceback" not in refused.stderr
    private_slurm.start_controller()
    run = find_run(root, "tiny-")  # kept: sbatch may have submitted it, and its answer been lost
    adopt(run, cluster, monkeypatch)
    all_finish(private_slurm, [run], cluster)


def test_where_there_is_no_sbatch_or_no_shared_folder_nothing_is_written(
    private_slurm: RealSlurm, root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes")
    before = scenario.written(root)
    (tmp_path / "file").touch()
    recipes(tmp_path, where(tmp_path / "file"))
    refused = igpt(*command, folder=tmp_path, store=root.uri)
    assert refused.returncode == 2
    assert f"{tmp_path}/file/shared cannot be used: Not a directory" in refused.stderr
    assert "Set `folder` in the cluster file" in refused.stderr
    only_git = tmp_path / "bin"
    only_git.mkdir()
    (only_git / "git").symlink_to(str(shutil.which("git")))
    recipes(tmp_path, where(tmp_path))
    monkeypatch.setenv("PATH", str(only_git))
    refused = igpt(*command, folder=tmp_path, store=root.uri)
    assert refused.returncode == 2
    assert "this machine has no sbatch" in refused.stderr
    assert "login node" in refused.stderr
    assert scenario.written(root) == before


def test_what_was_submitted_runs_although_the_tree_changes_while_the_job_waits(
    private_slurm: RealSlurm, root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = where(tmp_path)
    recipes(tmp_path, cluster)
    tree = source_tree.checkout(tmp_path / "tree")
    monkeypatch.setenv("PYTHONPATH", str(tree))
    command = ("submit", "tiny.yaml", "--cluster", "slurm.yaml", "--yes", *TINY)
    done = igpt(*command, folder=tmp_path, store=root.uri)
    assert done.returncode == 0, done.stderr
    run = find_run(root, "tiny-")
    source_tree.change(tree)
    all_finish(private_slurm, [run], cluster)
    ran = code_of(run)
    assert read_json(run.record, "provenance.json")["code"]["digest"] == ran
    assert root.exists(f"code/{ran}.tar.gz")
    other = igpt(*command, "seed=1", folder=tmp_path, store=root.uri)  # with the tree as it is now
    assert other.returncode == 0, other.stderr
    (changed,) = [open_run(root, name) for name in root.children("runs") if name != run.id]
    assert code_of(changed) != ran
    private_slurm.output("scontrol", "release", scenario.job(changed))
    ended = scenario.ended(changed)
    assert ended.state is RunState.FAILED
    assert source_tree.CHANGED in ended.reason


def test_a_run_after_another_starts_when_that_has_finished(
    private_slurm: RealSlurm, root: Store, tmp_path: Path
) -> None:
    cluster = where(tmp_path)
    first = submission(root, cluster).run
    second = after(root, cluster, first)
    assert "after" in second.facts
    later = second.run
    assert private_slurm.job(scenario.job(later))["Dependency"].startswith(
        f"afterok:{scenario.job(first)}"
    )
    private_slurm.output("scontrol", "release", scenario.job(later))
    study.until(lambda: with_reason(later, "Dependency"), "it waits for the other", 60)
    private_slurm.output("scontrol", "release", scenario.job(first))
    assert scenario.ended(later, 600).state is RunState.FINISHED, scenario.story(later)
    assert status(first).state is RunState.FINISHED
    finished, started = first.last_event(ev.FINISHED), later.last_event(ev.STARTED)
    assert finished is not None
    assert started is not None
    assert finished.time < started.time
    assert later.spec().config["model"].startswith(f"runs/{first.id}/checkpoints/")


def test_a_run_after_one_that_fails_is_given_up_and_says_why(
    private_slurm: RealSlurm, root: Store, tmp_path: Path
) -> None:
    cluster = where(tmp_path)
    first = submission(root, cluster).run
    later = after(root, cluster, first).run
    index = root.get("data/digits/index.json")
    root.delete(["data/digits/index.json"])
    for run in (first, later):
        private_slurm.output("scontrol", "release", scenario.job(run))
    assert scenario.ended(first).state is RunState.FAILED
    now = scenario.ended(later)
    assert (now.state, now.exit_code) == (RunState.STALLED, 6)
    assert now.reason.startswith(
        f"run {first.id}, which has to finish first, is failed: user-error"
    )
    assert now.next == f"igpt-jobs resume {first.id} first"
    with pytest.raises(UserError, match="has to finish first"):
        resume(later)
    root.put("data/digits/index.json", index)
    resume(first)
    resume(later)
    for run in (first, later):
        private_slurm.output("scontrol", "release", scenario.job(run))
    assert scenario.ended(later, 600).state is RunState.FINISHED, scenario.story(later)


def test_a_run_that_waits_for_another_can_be_cancelled(
    private_slurm: RealSlurm, root: Store, tmp_path: Path
) -> None:
    cluster = where(tmp_path)
    first = submission(root, cluster).run
    later = after(root, where(tmp_path, sbatch={}), first).run
    study.until(lambda: with_reason(later, "Dependency"), "it waits for the other", 60)
    assert cancel(later).state is RunState.CANCELLED
    assert stands(first) is RunState.QUEUED
    all_finish(private_slurm, [first], cluster)
    assert later.claims() == []
