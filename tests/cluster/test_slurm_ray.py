"""Ray inside a job of Slurm: sweeps over two nodes, each with its own network.

The table has to be the one that the sweep gives on one machine; what a preemption interrupts goes
on from the layers that are done; a Ray that does not start says so; nothing of it is left behind.
"""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from igpt.clusters import cancel
from igpt.clusters.dashboard import read_dashboard
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.state import RunState
from igpt.storage import Store, open_store
from tests.cluster import scenario
from tests.cluster.scenario import where
from tests.cluster.sweeping import LAYERS, SLOW, hosts, layers, said, sweep, table
from tests.support import study
from tests.support.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the digits and a network that was trained on them."""
    folder = tmp_path_factory.mktemp("trained") / "store"
    shutil.copytree(digits, folder)
    store = open_store(str(folder))
    with study.cleaned(store):
        run = study.start(store, study.cluster(max_parallel=9), "schedule.steps=10")
        assert study.ended(run, 300).state is RunState.FINISHED
    return folder


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Iterator[Store]:
    """A store of the test's own with the network."""
    folder = tmp_path / "store"
    shutil.copytree(trained, folder)
    store = open_store(str(folder))
    with study.cleaned(store):
        yield store


def ray_processes(slurm: SlurmCluster) -> list[int]:
    """Ray's processes on all nodes."""
    return [pid for node in slurm.names for pid in slurm.pids(node, "ray")]


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(slurm: SlurmCluster) -> None:
    """Waits until no job is left, and no process of Ray's."""
    study.until(lambda: not slurm.squeue(), "the job ends", 60)
    study.until(lambda: not ray_processes(slurm), "no process of Ray's is left", 10)


def ask(address: str, token: str | None = None) -> tuple[int, str]:
    """Status and text of an answer of Ray's."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urlopen(Request(address, headers=headers), timeout=30) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, ""


def dashboard_of(run: Run, folder: Path) -> tuple[str, str]:
    """Where Ray's dashboard answers while a run is at work, and the token that it asks for."""
    dashboard = read_dashboard(run)
    assert dashboard is not None
    assert (dashboard.host, dashboard.through) == ("n1", "ssh")
    (secret,) = (folder / "shared").glob(f"{run.id}-*/ray-*.token")
    assert secret.stat().st_mode & 0o777 == 0o600
    return f"http://{dashboard.address}:{dashboard.port}", secret.read_text()


def metrics(address: str, token: str) -> str:
    """What all nodes export for Prometheus."""
    targets = json.loads(ask(f"{address}/api/prometheus/sd", token)[1])
    return "".join(ask(f"http://{one}/metrics")[1] for one in targets[0]["targets"])


def test_a_sweep_over_two_nodes_gives_the_table_of_one_machine(
    private_slurm: SlurmCluster, root: Store, trained: Path, tmp_path: Path
) -> None:
    run = sweep(root, where(tmp_path), *SLOW)
    study.until(lambda: layers(run), "a layer is done", 240)
    address, token = dashboard_of(run, tmp_path)
    assert ask(f"{address}/api/version")[0] == 401
    assert ask(f"{address}/api/version", token)[0] == 200

    assert scenario.ended(run, 400).state is RunState.FINISHED, scenario.story(run)
    gone(private_slurm)
    assert scenario.kinds(run)[ev.FAILED] == 0
    assert len(hosts(run, 1)) == LAYERS
    # Tune hands trials to actors that are there, so on a busy machine one may do all of these.
    assert set(hosts(run, 1)) <= {"n1", "n2"}
    assert "has 2 CPUs" in said(run, 1)
    (shared,) = (tmp_path / "shared").glob(f"{run.id}-*")
    assert not list(shared.glob("ray-*.token"))
    for node in (0, 1):  # Ray's own logs of both nodes
        assert (shared / f"ray-{scenario.job(run)}.0-{node:04d}" / "raylet.out").stat().st_size
    everything = [run.record.get(key) for key in scenario.written(run.record)]
    assert not any(token.encode() in data for data in everything)

    other = tmp_path / "other"
    shutil.copytree(trained, other)
    with study.cleaned(open_store(str(other))):
        local = sweep(open_store(str(other)), study.cluster(max_parallel=9), *SLOW)
        assert study.ended(local, 400).state is RunState.FINISHED
        assert table(run) == table(local)


def test_a_sweep_that_is_preempted_goes_on_from_the_layers_that_are_done(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path
) -> None:
    run = sweep(root, where(tmp_path), *SLOW)
    study.until(lambda: len(layers(run)) >= 2, "two layers are done", 240)
    before = scenario.job(run)
    private_slurm.submit("sleep 1", "--partition=high", "--nodes=2", "--exclusive")
    study.until(lambda: scenario.kinds(run)[ev.PREEMPTED], "the attempt is over", 60)
    done = layers(run)
    assert 2 <= len(done) < LAYERS
    assert scenario.ended(run, 400).state is RunState.FINISHED, scenario.story(run)
    gone(private_slurm)
    assert scenario.job(run) == before
    assert scenario.kinds(run)[ev.FAILED] == 0
    assert len(run.claims()) == 2
    assert len(layers(run)) == LAYERS
    assert len(hosts(run, run.claims()[-1].attempt)) == LAYERS - len(done)  # none was fitted twice


def test_a_sweep_that_is_cancelled_ends_with_its_ray(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path
) -> None:
    run = sweep(root, where(tmp_path), *SLOW)
    study.until(lambda: layers(run), "a layer is done", 240)
    cancel(run)
    assert scenario.ended(run, 120).state is RunState.CANCELLED
    gone(private_slurm)
    assert 1 <= len(layers(run)) < LAYERS


@pytest.mark.long
@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_node_whose_ray_ends_costs_an_attempt_and_no_layer(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path, node: str
) -> None:
    run = sweep(root, where(tmp_path), *SLOW)
    study.until(lambda: layers(run), "a layer is done", 240)
    study.send(private_slurm.pids(node, "raylet"), signal.SIGKILL)
    study.until(lambda: scenario.kinds(run)[ev.FAILED], "the attempt is over", 60)
    failed = scenario.last(run, ev.FAILED)
    assert (failed["class"], failed["final"]) == ("node", False), failed
    assert failed["reason"].startswith(f"Ray ended on {node}: "), failed
    done = layers(run)
    assert scenario.ended(run, 400).state is RunState.FINISHED, scenario.story(run)
    gone(private_slurm)
    assert len(run.claims()) == 2
    assert len(hosts(run, run.claims()[-1].attempt)) == LAYERS - len(done)


def test_a_killed_parent_takes_its_ray_along_and_the_sweep_goes_on(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path
) -> None:
    """srun asks the other node to stop, which can save: to Slurm's eyes as in a preemption."""
    run = sweep(root, where(tmp_path), *SLOW)
    study.until(lambda: layers(run), "a layer is done", 240)
    ours = [*private_slurm.pids("n2", "ray_guard"), *private_slurm.pids("n2", "raylet")]
    study.send(private_slurm.pids("n2", "igpt.clusters.slurm.node"), signal.SIGKILL)
    study.until(lambda: not any(map(alive, ours)), "its Ray ends", 30)
    assert scenario.ended(run, 400).state is RunState.FINISHED, scenario.story(run)
    gone(private_slurm)
    assert len(run.claims()) == 2
    assert len(layers(run)) == LAYERS


@pytest.mark.usefixtures("slow_disk")
def test_training_beside_ray_is_shown_by_it_and_the_same_to_the_last_bit(
    private_slurm: SlurmCluster, digits: Path, root: Store, tmp_path: Path, tmp_path_factory: Any
) -> None:
    run = study.start(root, where(tmp_path, ray="always"), *scenario.LONG)
    study.until(lambda: read_dashboard(run), "the dashboard is written down", 120)
    address, token = dashboard_of(run, tmp_path)
    for rank in (0, 1):
        gauge = re.compile(rf"^ray_igpt_step{{[^}}]*rank=\"{rank}\"[^}}]*}} [1-9]", re.MULTILINE)
        study.until(lambda g=gauge: g.search(metrics(address, token)), f"rank {rank} is shown", 120)
    assert scenario.ended(run, 400).state is RunState.FINISHED, scenario.story(run)
    gone(private_slurm)
    base = scenario.base_folder(tmp_path_factory)
    assert study.losses(run) == scenario.yardstick(digits, base, *scenario.LONG)


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_ray_that_does_not_start_is_the_reason_of_the_failure(
    private_slurm: SlurmCluster, root: Store, tmp_path: Path, node: str
) -> None:
    """A package in front of Ray: on one of the nodes it has something else to say."""
    package = tmp_path / "elsewhere" / "ray" / "scripts"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "scripts.py").write_text(_UNWELL.format(node=node))
    setup = [f"export PYTHONPATH={tmp_path}/elsewhere:$PYTHONPATH"]
    run = sweep(root, where(tmp_path, setup=setup, retries={"crash": 0}))
    end = scenario.ended(run)
    assert (end.state, end.exit_code) == (RunState.FAILED, 1)
    assert end.reason == f"crash: Ray did not start on {node}: no room for Ray here"
    assert run.claims() == []
    gone(private_slurm)
    (logs,) = (tmp_path / "shared").glob(f"probe-*/ray-*-{int(node[1]) - 1:04d}/output")
    assert logs.read_text() == "no room for Ray here\n"


_UNWELL = """
import os, platform, sys
if platform.node() == {node!r}:
    sys.exit("no room for Ray here")
first, _, rest = os.environ["PYTHONPATH"].partition(":")
os.environ["PYTHONPATH"] = rest
os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", *sys.argv[1:]])
"""
