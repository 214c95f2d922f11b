"""A real Slurm, shared by all tests or of a test's own to do harm to, and a real Ray."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import slow
from tests.support.machines import missing as missing_machines
from tests.support.ray_cluster import RayHosts
from tests.support.slurm import Slurm, missing, slurm_variables
from tests.support.slurm_cluster import SlurmCluster
from tests.support.slurm_sharing import shared_slurm


def need_slurm(*, accounting: bool = False) -> None:
    """Skips the test where Slurm cannot run, saying why; in CI it fails instead."""
    need(missing(accounting=accounting))


def need(reason: str | None) -> None:
    """Skips the test where something is missing; in CI it fails instead."""
    if reason:
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """The cluster of all workers of the session: eight nodes of two CPUs, n1 to n8.

    A test that uses it names its nodes or takes what is free, and cancels only its own jobs.
    """
    need_slurm()
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "slurm"
    with shared_slurm(folder, nodes=8, cpus=2) as cluster:
        yield cluster


@pytest.fixture
def slurm_environment(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The shared cluster, which `sbatch` and the rest now find through the environment."""
    _point_to(slurm, monkeypatch)
    return slurm


@pytest.fixture
def private_slurm(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SlurmCluster]:
    """A cluster of the test's own, found through the environment: two nodes of four CPUs.

    Another number of nodes: `@pytest.mark.parametrize("private_slurm", [3], indirect=True)`; or
    there a dictionary of what `SlurmCluster` takes.
    """
    need_slurm()
    given = getattr(request, "param", {})
    options = given if isinstance(given, dict) else {"nodes": given}
    cluster = SlurmCluster(_short_folder(tmp_path_factory), **options)
    cluster.start()
    _point_to(cluster, monkeypatch)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def accounting_slurm(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmCluster]:
    """A cluster of the test's own that keeps accounts: `sacct` works."""
    need_slurm(accounting=True)
    cluster = SlurmCluster(_short_folder(tmp_path_factory), accounting=True)
    cluster.start()
    _point_to(cluster, monkeypatch)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test submits runs on machines with a slow disk, and so does its own Ray."""
    for name, value in slow.variables().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def ray_hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RayHosts]:
    """A Ray cluster of the test's own: a head and one worker, of one CPU each.

    Others: `@pytest.mark.parametrize("ray_hosts", [{...}], indirect=True)`, what `RayHosts` takes.
    """
    need(missing_machines({}, "a Ray cluster of several hosts"))
    slowness = slow.variables() if "slow_disk" in request.fixturenames else {}
    given = {"environment": slowness, **getattr(request, "param", {})}
    cluster = RayHosts(tmp_path_factory.mktemp("ray"), **given)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


def _point_to(cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets Slurm's commands find this cluster, and nothing else of the environment reach them."""
    for name in slurm_variables():
        monkeypatch.delenv(name)
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)


def _short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not below the test's name: the path of a socket has at most 107 characters."""
    return tmp_path_factory.mktemp("slurm")
