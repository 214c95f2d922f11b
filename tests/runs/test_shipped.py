"""A process of a run executes the code of its submission, also where that has gone meanwhile."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from igpt.clusters.files import cluster_key
from igpt.clusters.ranks.exits import read_exits
from igpt.clusters.slurm.config import SlurmCluster
from igpt.config import dump_yaml
from igpt.runs import Run, snapshot
from igpt.runs import events as ev
from igpt.runs.archive import PLAIN, File, digest_of, in_order
from igpt.runs.failures import FailureClass
from igpt.runs.record import open_run
from igpt.runs.shipped import CODE
from igpt.runs.snapshot import Snapshot
from igpt.storage import Store

ROOT = Path(__file__).parents[2]
STARTED = ("igpt.jobs.worker", "igpt.clusters.local.supervisor", "igpt.clusters.slurm.node")
SAY = b"import sys\nprint('submitted:', __file__, *sys.argv[1:])\n"
PACKAGES = ("igpt", "igpt/jobs", *(f"igpt/clusters{kind}" for kind in ("", "/local", "/slurm")))
#: What was submitted: programs that say where they are.
FILES = in_order(
    [
        *(File(f"{name.replace('.', '/')}.py", PLAIN, SAY) for name in STARTED),
        *(File(f"{name}/__init__.py", PLAIN, b"") for name in PACKAGES),
    ]
)


@pytest.fixture
def run(store: Store) -> Run:
    """A run that has been submitted as job 17 of Slurm."""
    run = open_run(store, "tiny-1a2b3c4d")
    spec = {"job": "pretrain", "name": "tiny", "config": {}, "inputs": {}}
    run.record.put("spec.yaml", yaml.safe_dump(spec).encode())
    run.event(ev.SUBMITTED, writer="client", attempt=1)
    run.record.put(cluster_key(1), dump_yaml(SlurmCluster()).encode())
    return run


@pytest.fixture
def code(run: Run, tmp_path: Path) -> Path:
    """The folder of the code of the submission; it is in the store, and not there."""
    digest = digest_of(FILES)
    snapshot.publish(run.root, Snapshot("1", digest, None), FILES)
    return tmp_path / "shared" / "code" / digest


def start(
    module: str, run: Run, code: Path, *first: Path, **more: str
) -> "subprocess.CompletedProcess[str]":
    """Starts a module as its cluster does; installed is the code that is tested."""
    variables = {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (*first, code, ROOT))),
        CODE: str(code),
        "SLURM_JOB_ID": "17",
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
    }
    return subprocess.run(
        [sys.executable, "-u", "-m", module, run.uri, "1"],
        env=os.environ | variables | more,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "how"), [*((name, "gone") for name in STARTED), (STARTED[-1], "in pieces")]
)
def test_code_that_has_gone_is_unpacked_again_and_runs(
    module: str, how: str, run: Run, code: Path
) -> None:
    if how == "in pieces":  # as what cleans a disk of old files leaves it
        snapshot.unpack(run.root, code.name, code.parent)
        (code / "igpt" / "__init__.py").unlink()
        shutil.rmtree(code / "igpt" / "clusters" / "slurm")
    done = start(module, run, code)
    at = code / f"{module.replace('.', '/')}.py"
    assert done.stdout == f"submitted: {at} {run.uri} 1\n", done.stderr
    assert f"was not in {code}; it is unpacked again" in done.stderr
    assert not run.claims()


def test_a_worker_whose_code_is_lost_says_so_and_is_not_tried_again(
    run: Run, code: Path, tmp_path: Path
) -> None:
    run.root.delete([f"code/{code.name}.tar.gz"])
    done = start("igpt.jobs.worker", run, code, IGPT_SCRATCH=str(tmp_path))
    assert done.returncode == 2
    said = json.loads((tmp_path / "failure-0.json").read_text())
    assert said["class"] == FailureClass.USER_ERROR
    assert f"the code of the submission is gone from {code}, and" in said["reason"]
    assert "--new-code" in said["reason"]
    assert not run.claims()


def test_a_supervisor_whose_code_is_lost_does_not_begin(run: Run, code: Path) -> None:
    run.root.delete([f"code/{code.name}.tar.gz"])
    done = start("igpt.clusters.local.supervisor", run, code)
    assert done.returncode == 2
    assert "the code of the submission is gone" in done.stderr.splitlines()[-1]
    assert run.last_event(ev.LAUNCHED) is None


def test_a_node_of_slurm_whose_code_is_lost_gives_an_account_of_it(run: Run, code: Path) -> None:
    run.root.delete([f"code/{code.name}.tar.gz"])
    assert start("igpt.clusters.slurm.node", run, code).returncode == 1
    exits = read_exits(run, 1, 0)
    assert exits is not None
    assert [(one.code, one.failure) for one in exits] == [(2, FailureClass.USER_ERROR)]
    assert "the code of the submission is gone" in exits[0].reason
    assert not run.claims()


def test_code_that_something_else_stands_before_is_refused(run: Run, code: Path) -> None:
    """A line of `setup` may have set PYTHONPATH anew."""
    done = start("igpt.jobs.worker", run, code, ROOT)
    assert done.returncode == 2
    assert f"the code that runs is that in {ROOT}" in done.stderr
    assert "`setup`" in done.stderr


def test_where_no_code_was_shipped_the_installed_one_runs(run: Run, code: Path) -> None:
    done = start("igpt.jobs.worker", run, code, **{CODE: ""})
    assert "'data' is missing" in done.stderr  # so far it has come
