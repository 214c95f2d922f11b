"""The sbatch script: what a user sees with --dry-run, kept as files, and checked by bash itself.

The script's text comes from a private method of submitit; a change there shows here first.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.slurm.slurm import SlurmJobEnvironment

from igpt.clusters.base import Launch
from igpt.clusters.kinds import backend_of
from igpt.clusters.notify import NotifyConfig
from igpt.clusters.slurm.config import SlurmCluster, seconds_of
from igpt.clusters.slurm.script import executor, node_command
from igpt.config import override, parse, read_yaml
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
    "setup": ["module load cuda", "ulimit -c 0"],
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


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with `srun`, `python` and `scontrol`, which say what they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    say = 'printf "${0##*/}" >&2; printf " <%s>" "$@" >&2; echo " PYTHONPATH=$PYTHONPATH" >&2\n'
    texts = {
        "srun": say + "exit ${SRUN_CODE:-3}",
        "python": say + "exit ${AFTER_CODE:-75}",
        "apptainer": say + "exit ${AFTER_CODE:-75}",
        "module": "",
        "sleep": say,
        "scontrol": say
        + '[ "$1" = requeue ] && { [ -e refused ] && exit 0; touch refused; exit 1; }\n'
        + 'echo "JobId=17 JobState=RUNNING Restarts=${SHOWN:-0} RunTime=00:01:00"',
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def run_script(name: str, programs: Path, **environment: str) -> tuple[int, list[str]]:
    """The exit code of a script and the commands that it called, in order."""
    return run_text(script(*CASES[name]), programs, **environment)


def run_text(text: str, programs: Path, **environment: str) -> tuple[int, list[str]]:
    ended = subprocess.run(
        ["bash", "-c", text],
        env={"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "17", **environment},
        cwd=programs.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    started, *lines = ended.stderr.splitlines()
    assert started == f"igpt-jobs: start 17.{environment.get('SLURM_RESTART_COUNT', 0)}"
    return ended.returncode, lines


@pytest.mark.parametrize("name", CASES)
def test_bash_runs_the_ranks_asks_for_the_verdict_and_insists_on_the_requeue(
    name: str, programs: Path
) -> None:
    # In a container it is `srun` that calls Python after the ranks.
    ended = "75" if name == "container" else "3"
    code, (step, shown, after, *rest) = run_script(name, programs, SRUN_CODE=ended)
    launch = CASES[name][1]
    address, attempt = f"<{launch.run_uri}>", f"<{launch.attempt}>"
    assert code == 75
    assert f"<-m> <igpt.clusters.slurm.node> {address} {attempt} PYTHONPATH" in step
    assert shown.startswith("scontrol <show> <job> <--oneliner> <17>")
    assert f"<-m> <igpt.clusters.slurm.after> {address} {attempt} <{ended}>" in after
    calls = [line.partition(" PYTHONPATH")[0] for line in rest]
    ask = "scontrol <show> <job> <--oneliner> <17>"
    requeue = "scontrol <requeue> <17>"  # refused the first time
    assert calls == [ask, requeue, "sleep <5>", ask, requeue]
    if launch.code:
        assert step.endswith(f"PYTHONPATH=/shared/my igpt/code/{launch.code}")


def test_a_job_that_slurm_has_requeued_itself_is_not_requeued_twice(programs: Path) -> None:
    _, lines = run_script("default", programs, SHOWN="1")
    assert not any("<requeue>" in line for line in lines)


@pytest.mark.parametrize("code", ["0", "1", "5"])
def test_a_verdict_that_is_final_ends_the_job_with_its_exit_code(code: str, programs: Path) -> None:
    ended, lines = run_script("default", programs, AFTER_CODE=code)
    assert ended == int(code)
    assert not any("<requeue>" in line for line in lines)


def run_setup(programs: Path, *setup: str) -> tuple[int, list[str]]:
    text = script({"folder": "/shared/igpt", "python": "python", "setup": list(setup)})
    code, lines = run_text(text, programs)
    return code, [line.partition(" PYTHONPATH")[0] for line in lines]


@pytest.mark.parametrize("strict", ["set -e", "set -euo pipefail", "trap 'exit 9' ERR; set -E"])
def test_a_strict_setup_keeps_nobody_from_the_verdict_and_the_requeue(
    strict: str, programs: Path
) -> None:
    code, (step, _, after, *rest) = run_setup(programs, strict, "trap 'echo tidied >&2' EXIT")
    assert code == 75
    assert "igpt.clusters.slurm.node" in step
    assert f"{LAUNCH.run_uri}> <1> <3>" in after
    assert rest[-2:] == ["scontrol <requeue> <17>", "tidied"]


@pytest.mark.parametrize(
    ("lines", "code", "command"),
    [
        (["set -e", "sh -c 'exit 6'", "module"], 6, "sh -c 'exit 6'"),
        (["trap 'exit 9' ERR; set -E", "false"], 9, "false"),
        (["set -euo pipefail", "echo $no_such_variable"], 1, "echo $no_such_variable"),
        (["module || exit 3", "exit 0"], 0, "exit 0"),
    ],
)
def test_a_setup_that_ends_the_script_says_so_and_gets_a_verdict(
    lines: list[str], code: int, command: str, programs: Path
) -> None:
    ended, said = run_setup(programs, *lines)
    assert f"igpt-jobs: setup ended with exit code {code} (last command: {command})" in said
    assert ended == 75
    assert not any("igpt.clusters.slurm.node" in line for line in said)
    (after,) = [line for line in said if "igpt.clusters.slurm.after" in line]
    assert after.endswith("<1>")  # whatever it was: it was not the ranks'
    assert said[-1] == "scontrol <requeue> <17>"


def test_the_signal_is_ours_whatever_submitit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlurmJobEnvironment, "USR_SIG", "USR1")  # by SUBMITIT_PREEMPT_SIGNAL
    assert "#SBATCH --signal=USR2@210\n" in script({})


def test_the_users_variables_are_defaults_and_overrule_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (
        *("ACCOUNT", "ARRAY_INX", "CLUSTERS", "CONSTRAINT", "CPUS_PER_GPU", "DISTRIBUTION"),
        *("ERROR", "EXPORT", "GPUS", "GRES", "HINT", "JOB_NAME", "MEM_PER_CPU", "MEM_PER_NODE"),
        *("NO_REQUEUE", "OPEN_MODE", "OUTPUT", "PARTITION", "PROFILE", "QOS", "REQUEUE"),
        *("RESERVATION", "SIGNAL", "TIMELIMIT", "WAIT", "WCKEY"),
    )
    for name in names:
        monkeypatch.setenv(f"SBATCH_{name}", "theirs")
    monkeypatch.setenv("SLURM_JOB_ID", "of a job that we are in")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\nenv > "$(dirname "$0")/seen"\necho Submitted batch job 17\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fields = {"partition": "gpu", "mem": "8G", "gpus_per_node": 1, "sbatch": {"hint": "x"}}
    cluster = SlurmCluster(folder=str(tmp_path), **fields)
    made = executor(cluster, LAUNCH)
    made.folder.mkdir()
    assert made.submit_command(node_command(cluster, LAUNCH)) == "17"
    seen = {line.partition("=")[0] for line in (tmp_path / "seen").read_text().splitlines()}
    kept = ("ACCOUNT", "CONSTRAINT", "DISTRIBUTION", "GRES", "PROFILE", "QOS", "RESERVATION")
    assert {name for name in seen if name.startswith(("SBATCH_", "SLURM_"))} == {
        *(f"SBATCH_{name}" for name in (*kept, "WCKEY")),
        "SLURM_CONF",
    }
    assert os.environ["SBATCH_PARTITION"] == "theirs"


def test_nothing_of_submitits_defaults_that_harms_is_left() -> None:
    text = script(CASES["default"][0])
    assert "--wckey" not in text
    assert "--time=24:00:00" in text
    assert "submitit.core._submit" not in text
    assert "#SBATCH --requeue\n" in text
    assert "--signal=USR2@210" in text
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
        ('time: "2:00"\ngrace_seconds: 120', "leave nothing of the time limit 2:00"),
        ("sbatch: {time: 5}", "time: set by a field of its own"),
        ("sbatch: {--no-requeue: true}", "--no-requeue: set by a field of its own"),
        ("sbatch: {nice: false}", "sbatch.nice"),
        ("sbatch: {--nice: 1}", "'--nice' is no flag of sbatch"),
        ("sbatch: {nice 5: true}", "'nice 5' is no flag of sbatch"),
        ("partitions: gpu", 'did you mean "partition"'),
        ("comment: |\n  a study\n", "line 2: comment: '\\n' would end the line of the flag"),
        ('gpus_per_node: "a100:8\\r"', "gpus_per_node: '\\r' would end"),
        ('sbatch: {nice: 1, prefer: "a\\nb"}', "line 2: sbatch: 'prefer': '\\n' would end"),
        ('sbatch: {"nice\\n": 1}', "sbatch: 'nice\\n': '\\n' would end"),
        ('folder: "~/a\\nb"', "folder: '\\n' would end"),
    ],
)
def test_a_wrong_cluster_file_says_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(SlurmCluster, read_yaml(f"kind: slurm\n{text}", "slurm.yaml"))
    assert told in str(caught.value)
    assert "slurm.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("setup:\n  - module load cuda\n  - export HF_TOKEN=hunter\n", "line 4: setup.1"),
        ("srun_args: ['--export=ALL,HF_TOKEN=hunter']", "line 2: srun_args.0"),
        ("python: env HF_TOKEN=hunter python", "line 2: python"),
        ("comment: HF_TOKEN=hunter", "line 2: comment"),
        ("sbatch: {container-env: HF_TOKEN=hunter}", "line 2: sbatch"),
        ("notify: {command: [tell, --hf-token, hunter]}", "line 2: notify.command"),
    ],
)
def test_a_secret_in_what_is_recorded_is_refused_and_not_shown(text: str, place: str) -> None:
    document = read_yaml(f"kind: slurm\n{text}", "slurm.yaml")
    with pytest.raises(UserError) as caught:
        parse(SlurmCluster, document)
    assert f"slurm.yaml, {place}" in str(caught.value)
    assert "a secret (" in str(caught.value)
    assert "export NAME=$(cat ~/.name)" in str(caught.value)
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("given", ["python=env HF_TOKEN=hunter python", "setup=[TOKEN=hunter]"])
def test_a_secret_in_an_override_is_not_shown(given: str) -> None:
    with pytest.raises(UserError, match=r"override (python|setup): ") as caught:
        parse(SlurmCluster, override(read_yaml("kind: slurm", "slurm.yaml"), [given]))
    assert "hunter" not in str(caught.value)


def test_a_setup_may_read_secrets() -> None:
    lines = ["export HF_TOKEN=$(cat ~/.key)", 'export KEY="$HF_TOKEN"', "source ~/.secrets"]
    assert SlurmCluster(setup=lines, notify=NotifyConfig(command=("tell", "me"))).setup == lines


def test_the_plan_says_where_ray_is_started() -> None:
    launch = Launch("/store/runs/probe-12345678", 1, ray=True)
    two = SlurmCluster(nodes=2, workers=2, cpus_per_worker=8)
    assert backend_of(two).plan(launch).facts["ray"] == (
        "started inside the job, on 2 nodes x 8 cores"
    )
    quiet = Launch("/store/runs/pretrain-12345678", 1)
    assert "ray" not in backend_of(two).plan(quiet).facts
    assert "ray" in backend_of(SlurmCluster(ray="always")).plan(quiet).facts
