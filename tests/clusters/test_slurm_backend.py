"""What a client does with a run on Slurm, whose commands are scripts here."""

import json
import time
from pathlib import Path

import pytest

from igpt.clusters import cancel, resume, status
from igpt.clusters.files import cluster_key
from igpt.clusters.kinds import backend_of
from igpt.clusters.slurm import backend
from igpt.clusters.slurm.client import Slurm
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.jobs import read_job, write_job
from igpt.clusters.slurm.place import job_folder
from igpt.clusters.submission import launch
from igpt.config import dump_yaml
from igpt.errors import Superseded, Unreachable, UserError
from igpt.runs import Run, snapshot
from igpt.runs import events as ev
from igpt.runs.archive import PLAIN, File, digest_of
from igpt.runs.attempts import Claim, claim
from igpt.runs.record import open_run
from igpt.runs.snapshot import Snapshot
from igpt.runs.state import RunState
from igpt.storage import Store, open_store

FILES = (File("igpt/__init__.py", PLAIN, b""),)
CODE = digest_of(FILES)
#: `queue` holds what squeue says and `known` what sacct says; `calls` is what scancel was told.
COMMANDS = {
    "sbatch": 'echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1',
    "squeue": 'cat "$here/queue"',
    "sacct": 'cat "$here/known"',
    "scontrol": "exit 1",
    "scancel": 'echo "$@" >> "$here/calls"; : > "$here/queue"',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the commands and of what they say."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in COMMANDS.items():
        (folder / name).write_text(f'#!/bin/sh\nhere="$(dirname "$0")"\n{text}\n')
        (folder / name).chmod(0o755)
    for name in ("queue", "known", "calls"):
        (folder / name).write_text("")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(backend, "SLURM", Slurm())
    return folder


@pytest.fixture
def cluster(tmp_path: Path) -> SlurmCluster:
    return SlurmCluster(folder=str(tmp_path / "shared"))


@pytest.fixture
def run(store: Store, cluster: SlurmCluster) -> Run:
    """A run that has been submitted as job 17, for its first attempt."""
    run = open_run(store, "tiny-1a2b3c4d")
    snapshot.publish(store, Snapshot("1", CODE, None), FILES)
    run.record.put("spec.yaml", b"job: pretrain\nname: tiny\nconfig: {}\ninputs: {}\n")
    run.event(ev.SUBMITTED, writer="client", attempt=1, code=CODE)
    run.record.put(cluster_key(1), dump_yaml(cluster).encode())
    assert write_job(run, 1, "17", restarts=0)
    where = {"job": "17", "folder": str(job_folder(cluster, run.uri))}
    run.event(ev.LAUNCHED, writer="client", attempt=1, **where)
    return run


def queued(slurm: Path, run: Run, state: str, folder: Path, ran: str = "0:00") -> None:
    (slurm / "queue").write_text(f"17|{state}|{ran}|None|{run.id}|{folder}\n")


def keys(store: Store) -> list[str]:
    return [info.key for info in store.objects()]


def test_a_takeover_that_slurm_refuses_leaves_a_living_run_as_it_was(
    run: Run, cluster: SlurmCluster, slurm: Path
) -> None:
    queued(slurm, run, "RUNNING", job_folder(cluster, run.uri))
    assert claim(run.record, Claim(1, "17.0", "n1", 1, 0.0))
    run.beat(1, "running", {})
    before = keys(run.root)
    assert status(run).state is RunState.RUNNING
    with pytest.raises(UserError, match="Slurm refused the job"):
        resume(run, force=True, from_step=0)
    assert keys(run.root) == before
    assert status(run).state is RunState.RUNNING


def test_a_stopped_run_that_slurm_refuses_says_so_and_can_be_resumed_again(
    run: Run, slurm: Path
) -> None:
    (slurm / "known").write_text(f"NODE_FAIL|0:0|{run.id}\n")
    for _ in range(2):
        with pytest.raises(UserError, match="Slurm refused the job"):
            resume(run)
        now = status(run)
        assert (now.state, now.exit_code) == (RunState.FAILED, 2)
        assert "invalid partition" in now.reason


#: An sbatch whose job is in the queue, whatever it says then.
TAKEN = (
    """name="$(sed -n 's/^#SBATCH --job-name=//p' "$1")"\n"""
    """folder="$(sed -n 's/^#SBATCH --chdir=//p' "$1")"\n"""
    """echo "18|PENDING|0:00|None|$name|$folder" > "$here/queue"\n"""
)


def answers(slurm: Path, text: str) -> None:
    """Makes sbatch another script."""
    (slurm / "sbatch").write_text(f'#!/bin/sh\nhere="$(dirname "$0")"\n{text}\n')


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'sbatch: error: Batch job submission failed: Message receive failure' >&2; exit 1",
        "echo 'sbatch: error: Batch job submission failed: Unspecified error' >&2; exit 1",
        "echo 'welcome to the site'; exit 0",
        "kill -9 $$",
    ],
)
def test_a_job_that_is_in_the_queue_is_the_runs_whatever_sbatch_said(
    run: Run, slurm: Path, answer: str
) -> None:
    (slurm / "known").write_text(f"NODE_FAIL|0:0|{run.id}\n")
    answers(slurm, TAKEN + answer)
    resume(run)
    assert (read_job(run, 2) or {})["job"] == "18"
    assert status(run).state is RunState.QUEUED


def test_a_submission_without_an_answer_is_no_refusal(run: Run, slurm: Path) -> None:
    """The job may come into the queue yet, and the record is how it is found again."""
    (slurm / "known").write_text(f"NODE_FAIL|0:0|{run.id}\n")
    answers(slurm, "echo welcome to the site")
    with pytest.raises(Unreachable, match="welcome to the site"):
        resume(run)
    assert run.record.exists(cluster_key(2))
    assert status(run).state is RunState.SUBMITTED


def test_who_comes_second_for_an_attempt_leaves_nothing_of_it(
    run: Run, cluster: SlurmCluster
) -> None:
    run.record.put(cluster_key(2), dump_yaml(cluster).encode())
    before = keys(run.root)
    with pytest.raises(Superseded):
        launch(run, cluster, 2, code=CODE, from_step=0)
    assert keys(run.root) == before


def test_a_run_is_the_same_by_whatever_path_its_store_is_reached(
    run: Run, cluster: SlurmCluster, slurm: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(run.root.uri)
    same = open_run(open_store(str(tmp_path / "link")), run.id)
    assert same.uri != run.uri
    assert job_folder(cluster, same.uri) == job_folder(cluster, run.uri)
    queued(slurm, run, "PENDING", job_folder(cluster, run.uri))
    assert cancel(same).state is RunState.CANCELLED
    assert (slurm / "calls").read_text() == "--state=PENDING 17\n"


def test_a_job_is_known_by_the_folder_that_it_was_submitted_with(
    run: Run, cluster: SlurmCluster, slurm: Path
) -> None:
    """Which another version may have called otherwise."""
    run.event(ev.LAUNCHED, writer="client", attempt=1, job="17", folder="/shared/of-old")
    queued(slurm, run, "PENDING", Path("/shared/of-old"))
    assert status(run).state is RunState.QUEUED
    assert cancel(run).state is RunState.CANCELLED
    assert (slurm / "calls").read_text() == "--state=PENDING 17\n"


def test_a_job_that_runs_and_gives_no_sign_of_life_is_not_starting_for_ever(
    run: Run, cluster: SlurmCluster, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = job_folder(cluster, run.uri)
    queued(slurm, run, "RUNNING", folder, "29:59")
    assert status(run).reason == "starting: Slurm job 17 is RUNNING"
    monkeypatch.setattr(backend, "SLURM", Slurm())  # which remembers nothing
    queued(slurm, run, "RUNNING", folder, "1-00:31:00")
    now = status(run)
    assert (now.state, now.exit_code) == (RunState.STALLED, 6)
    assert "started 1471 min ago and gave no sign of life" in now.reason
    assert (
        f"see {folder}/17_*_log.err; `scancel 17` ends the job, then igpt-jobs resume" in now.next
    )


def test_a_job_that_slurm_has_started_again_is_not_silent_since_its_last_start(
    run: Run, cluster: SlurmCluster, slurm: Path
) -> None:
    """It may have waited for hours in between."""
    silent = {"time": time.time() - 7200, "phase": "running", "host": "n1", "progress": {}}
    run.record.put("attempts/0001/heartbeat.json", json.dumps(silent).encode())
    queued(slurm, run, "RUNNING", job_folder(cluster, run.uri), "1:05")
    now = status(run)
    assert (now.state, now.reason) == (RunState.QUEUED, "starting: Slurm job 17 is RUNNING")


def test_a_job_of_another_run_with_the_same_number_is_left_alone(
    run: Run, cluster: SlurmCluster, slurm: Path
) -> None:
    queued(slurm, run, "PENDING", Path("/shared/of-another-store"))
    (slurm / "known").write_text(f"PENDING|0:0|{run.id}\n")
    assert status(run).reason == "Slurm knows no job 17 of this run"
    assert not backend_of(cluster).cancel(run)
    assert (slurm / "calls").read_text() == ""


def test_what_waits_in_slurm_is_never_cancelled_in_the_record_alone(run: Run, slurm: Path) -> None:
    """Where the queue does not show it to us, but Slurm knows it."""
    (slurm / "known").write_text(f"PENDING|0:0|{run.id}\n")
    assert cancel(run).state is RunState.CANCELLED
    assert (slurm / "calls").read_text() == "--state=PENDING 17\n"
