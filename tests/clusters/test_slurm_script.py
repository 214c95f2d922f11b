"""The sbatch script: what a user sees with --dry-run, kept as files, and checked by bash itself.

The script's text comes from a private method of submitit; a change there shows here first.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters.base import Launch
from igpt.clusters.slurm.config import SlurmCluster, seconds_of
from igpt.clusters.slurm.script import executor, node_command
from igpt.config import parse, read_yaml
from igpt.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
LAUNCH = Launch("s3://bucket/study/runs/pretrain-1a2b3c4d", 1)
SITE: dict[str, Any] = {
    "workers": 16,
    "nodes": 2,
    "gpus_per_node": "a100:8",
    "cpus_per_worker": 8,
    "mem": "0",
    "time": "2-00:00:00",
    "folder": "/shared/igpt",
    "partition": "gpu",
    "account": "vision",
    "qos": "long",
    "constraint": "ib&nvme",
    "reservation": "icml",
    "exclude": "bad[1-3]",
    "gres": "nvme:1",
    "licenses": "site:1",
    "wckey": "study",
    "comment": "a study's run",
    "exclusive": True,
    "mail_user": "me@example.org",
    "mail_type": "END,FAIL,REQUEUE",
    "sbatch": {"nice": 100, "spread-job": True},
    "setup": ["module load cuda", "ulimit -n 65536"],
    "python": "apptainer exec image.sif python",
}
CASES: dict[str, tuple[dict[str, Any], Launch]] = {
    "default": ({"folder": "/shared/igpt", "python": "python"}, LAUNCH),
    "site": (SITE, LAUNCH),
    "code-and-store": (
        {"folder": "/shared/my igpt", "python": "python"},
        Launch(
            LAUNCH.run_uri,
            3,
            code="0123abcd",
            after=("17", "18"),
            environment={"IGPT_S3_ENDPOINT": "http://10.0.0.1:8333", "IGPT_S3_REGION": "a b"},
        ),
    ),
    "container": (
        {
            "folder": "/shared/igpt",
            "python": "python",
            "srun_args": ["--container-image=igpt+1.sqsh", "--container-mounts=/shared:/shared"],
        },
        LAUNCH,
    ),
}


def script(fields: dict[str, Any], launch: Launch = LAUNCH) -> str:
    cluster = SlurmCluster(**fields)
    return executor(cluster, launch).text(node_command(cluster, launch))


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_one_on_file(name: str) -> None:
    fields, launch = CASES[name]
    assert script(fields, launch) == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.parametrize("name", CASES)
def test_bash_understands_the_script(name: str, tmp_path: Path) -> None:
    """Run with an `srun` and a `python` that say what they were given, and what the shell had."""
    fields, launch = CASES[name]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    # In a container it is `srun` that calls Python after the ranks.
    container = name == "container"
    codes = {"srun": 75 if container else 3, "python": 75, "apptainer": 75, "module": 0}
    for program, code in (codes | {"scontrol": 0}).items():
        path = bin_folder / program
        path.write_text(
            f'#!/bin/bash\nprintf "{program}"; printf " <%s>" "$@"; '
            f'echo " PYTHONPATH=$PYTHONPATH"\nexit {code}\n'
        )
        path.chmod(0o755)
    ended = subprocess.run(
        ["bash", "-c", script(fields, launch)],
        env={"PATH": f"{bin_folder}:/usr/bin:/bin", "SLURM_JOB_ID": "17"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 75, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if not line.startswith("module")]
    step, after, requeue = lines
    assert requeue.startswith("scontrol <requeue> <17>")
    address, attempt = f"<{launch.run_uri}>", f"<{launch.attempt}>"
    assert f"<-m> <igpt.clusters.slurm.node> {address} {attempt} PYTHONPATH" in step
    assert f"<-m> <igpt.clusters.slurm.after> {address} {attempt} <{codes['srun']}>" in after
    if launch.code:
        assert step.endswith(f"PYTHONPATH=/shared/my igpt/code/{launch.code}")


def test_nothing_of_submitits_defaults_that_harms_is_left() -> None:
    text = script(CASES["default"][0])
    assert "--wckey" not in text
    assert "--time=24:00:00" in text
    assert "submitit.core._submit" not in text
    assert "#SBATCH --requeue\n" in text
    assert "--signal=USR2@180" in text
    assert "False" not in text
    assert "None" not in text


def test_without_a_python_the_clients_own_runs_on_the_nodes() -> None:
    assert f"{sys.executable} -u -m igpt.clusters.slurm.node" in script({})


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("24:00:00", 86_400),
        ("2-12", 216_000),
        ("1-1:30", 91_800),
        ("1-0:0:1", 86_401),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workers: 3\nnodes: 2", "3 workers do not share 2 nodes evenly"),
        ("time: 1 day", "'1 day' is no time limit"),
        ('time: "2:00"\ngrace_seconds: 120', "leaves nothing of the time limit 2:00"),
        ("sbatch: {time: 5}", "time: set by a field of its own"),
        ("sbatch: {--no-requeue: true}", "--no-requeue: set by a field of its own"),
        ("sbatch: {nice: false}", "sbatch.nice"),
        ("partitions: gpu", 'did you mean "partition"'),
    ],
)
def test_a_wrong_cluster_file_says_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(SlurmCluster, read_yaml(f"kind: slurm\n{text}", "slurm.yaml"))
    assert told in str(caught.value)
    assert "slurm.yaml" in str(caught.value)
