"""A sweep on a Ray cluster of two hosts: one rank, whose trials run on both, and the same table."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from igpt.runs import events as ev
from igpt.runs.state import RunState
from igpt.storage import Store, open_store
from tests.cluster import scenario
from tests.cluster.scenario import on_ray
from tests.cluster.sweeping import LAYERS, SLOW, hosts, sweep, table
from tests.support import study
from tests.support.ray_cluster import RayHosts

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def stores(digits: Path, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two stores with the same trained network."""
    shutil.copytree(digits, tmp_path / "one")
    store = open_store(str(tmp_path / "one"))
    with study.cleaned(store):
        run = study.start(store, study.cluster(max_parallel=9), "schedule.steps=10")
        assert study.ended(run, 300).state is RunState.FINISHED
        shutil.copytree(tmp_path / "one", tmp_path / "other")
        other = open_store(str(tmp_path / "other"))
        with study.cleaned(other):
            yield store, other


@pytest.mark.parametrize("ray_hosts", [{"head_cpus": 2, "workers": (2,)}], indirect=True)
def test_a_sweep_over_a_ray_cluster_gives_the_table_of_one_machine(
    ray_hosts: RayHosts, stores: tuple[Store, Store]
) -> None:
    here, there = stores
    # As many workers as there is room for is one: the sweep spreads over the cluster by itself.
    run = sweep(there, on_ray(ray_hosts, workers={"min": 1, "max": 3}, resize_seconds=1), *SLOW)
    assert scenario.ended(run, 400).state is RunState.FINISHED, scenario.story(run)
    assert scenario.kinds(run)[ev.FAILED] + scenario.kinds(run)[ev.PREEMPTED] == 0
    assert [claim.workers for claim in run.claims()] == [1]
    # The last lines follow the result.
    study.until(lambda: len(hosts(run, 1)) == LAYERS, "the log is whole", 60)
    assert set(hosts(run, 1)) <= {"head", "w1"}  # on a busy machine one may do all of them
    local = sweep(here, study.cluster(max_parallel=9), *SLOW)
    assert study.ended(local, 400).state is RunState.FINISHED
    assert table(run) == table(local)
