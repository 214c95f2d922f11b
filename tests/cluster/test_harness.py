"""The cluster that the other tests of this folder stand on does what a real one does."""

import sys
from pathlib import Path

import pytest

from tests.support.slurm import Slurm, until
from tests.support.slurm_cluster import SlurmCluster

#: Rank 1 tells rank 0, over the network and by name, what its own name is.
_GREET = """
import os, socket
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server((socket.gethostname(), 4000)) as server:
        print(server.accept()[0].recv(99).decode(), "reached", socket.gethostname())
else:
    reached = False
    while not reached:
        with socket.socket() as connection:
            reached = connection.connect_ex(("n1", 4000)) == 0
            if reached:
                connection.sendall(socket.gethostname().encode())
"""


def _starts(path: Path) -> int:
    return path.read_text().count("start") if path.exists() else 0


def _saved(slurm: Slurm, job: int) -> None:
    """Returns when the controller has written to disk what it knows of a running job."""
    state = slurm.folder / "state" / "job_state"
    before = state.stat().st_mtime_ns
    slurm.output("scontrol", "update", f"job={job}", "comment=changed")
    until(lambda: state.stat().st_mtime_ns > before, "a saved state", 30)


def test_a_job_runs_on_two_nodes_and_they_reach_each_other_by_name(
    slurm_environment: Slurm, tmp_path: Path
) -> None:
    slurm = slurm_environment
    program = tmp_path / "greet.py"
    program.write_text(_GREET)
    job = slurm.submit(
        f"srun {sys.executable} {program}", "--nodelist=n[1-2]", "-N2", f"--output={tmp_path}/out"
    )
    until(lambda: slurm.job(job)["JobState"] == "COMPLETED", "the job completes")
    assert (tmp_path / "out").read_text() == "n2 reached n1\n"


def test_a_jobs_processes_are_seen_in_its_node_and_in_no_other(slurm: Slurm) -> None:
    job = slurm.submit("exec sleep 987", "--nodelist=n3", "--output=/dev/null")
    until(lambda: slurm.pids("n3", "sleep 987"), "the process on n3")
    assert slurm.pids("n4", "sleep 987") == []
    assert slurm.run("scancel", str(job)).returncode == 0
    until(lambda: not slurm.pids("n3", "sleep 987"), "its end")


def test_a_high_job_preempts_one_in_main_which_is_warned_and_starts_again(
    slurm: Slurm, tmp_path: Path
) -> None:
    where = ("--nodelist=n[5-6]", "--nodes=2", "--exclusive", "--open-mode=append")
    out = tmp_path / "out"
    script = "trap 'echo warned' USR2; echo start; sleep 600 & while :; do wait; done"
    low = slurm.submit(script, *where, "--requeue", "--signal=B:USR2@30", f"--output={out}")
    until(lambda: _starts(out) == 1, "the first start")
    high = slurm.submit("true", *where, "--partition=high", "--output=/dev/null")
    until(lambda: slurm.job(high)["JobState"] == "COMPLETED", "the other job completes")
    until(lambda: _starts(out) == 2, "the second start", 20)
    first, warned, killed, second = out.read_text().splitlines()
    assert (first, warned, second) == ("start", "warned", "start")
    assert killed.endswith("DUE TO PREEMPTION ***")
    assert slurm.job(low)["Restarts"] == "1"
    slurm.output("scancel", str(low))


@pytest.mark.parametrize("private_slurm", [3], indirect=True)
def test_a_node_that_is_cut_off_is_found_down_and_its_job_starts_elsewhere(
    private_slurm: SlurmCluster, tmp_path: Path
) -> None:
    slurm, out = private_slurm, tmp_path / "out"
    job = slurm.submit(
        f"echo start $SLURMD_NODENAME >> {out}; sleep 600", "--requeue", "--output=/dev/null"
    )
    until(lambda: _starts(out) == 1, "the first start")
    lost = slurm.job(job)["BatchHost"]
    slurm.cut(lost)
    until(lambda: "DOWN" in slurm.node_state(lost), "the node is found down", 40)
    assert slurm.pids(lost, "sleep 600")  # where nobody can reach it, it goes on
    until(lambda: _starts(out) == 2, "the second start", 60)
    assert slurm.job(job)["BatchHost"] != lost
    slurm.mend(lost)
    until(lambda: slurm.node_state(lost) == "IDLE", "the node is back", 30)
    until(lambda: not slurm.pids(lost, "sleep 600"), "what was left there is ended", 30)


def test_a_node_that_dies_takes_its_processes_along_and_can_boot_again(
    private_slurm: SlurmCluster,
) -> None:
    slurm = private_slurm
    slurm.submit("exec sleep 600", "--nodelist=n2", "--no-requeue", "--output=/dev/null")
    until(lambda: slurm.pids("n2", "sleep 600"), "the process on n2")
    slurm.kill_node("n2")
    assert slurm.pids("n2") == []
    slurm.start_node("n2")
    slurm.cancel_all()
    slurm.wait_idle()
    assert slurm.output("srun", "--nodelist=n2", "hostname") == "n2"


@pytest.mark.parametrize("crash", [False, True], ids=["in-order", "crash"])
def test_a_job_outlives_its_controller(
    private_slurm: SlurmCluster, tmp_path: Path, crash: bool
) -> None:
    slurm, out = private_slurm, tmp_path / "out"
    go = tmp_path / "go"
    script = f"echo start >> {out}; until [ -e {go} ]; do sleep 0.1; done"
    job = slurm.submit(script, "--nodes=2", "--output=/dev/null")
    until(lambda: _starts(out) == 1, "the start")
    if crash:
        _saved(slurm, job)
    slurm.stop_controller(crash=crash)
    assert slurm.run("squeue").returncode == 1
    slurm.start_controller()
    assert slurm.job(job)["JobState"] == "RUNNING"
    go.touch()
    until(lambda: slurm.job(job)["JobState"] == "COMPLETED", "the job completes", 30)
    assert _starts(out) == 1


def test_with_accounting_sacct_tells_how_a_job_ended(accounting_slurm: SlurmCluster) -> None:
    slurm = accounting_slurm
    well, badly = (slurm.submit(script, "--output=/dev/null") for script in ("true", "exit 3"))
    told = ("sacct", "-X", "--noheader", "--parsable2", "--format=JobID,State,ExitCode")
    expected = {f"{well}|COMPLETED|0:0", f"{badly}|FAILED|3:0"}
    until(lambda: set(slurm.output(*told).split()) == expected, "the accounts of both jobs", 30)


def test_without_accounting_sacct_fails(slurm: Slurm) -> None:
    assert slurm.run("sacct").returncode == 1
