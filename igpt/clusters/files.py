"""Reads a cluster file into the configuration of its kind."""

from pathlib import Path
from typing import TypeVar

from igpt.clusters.base import ClusterConfig
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.ray.config import RayCluster
from igpt.clusters.slurm.config import SlurmCluster
from igpt.config import Document, nearest, override, parse, read_yaml, read_yaml_file
from igpt.errors import DataCorrupt, UserError
from igpt.jobs.recipes import find_recipe
from igpt.runs import Run

C = TypeVar("C", bound=ClusterConfig)

KINDS: dict[str, type[ClusterConfig]] = {
    "local": LocalCluster,
    "slurm": SlurmCluster,
    "ray": RayCluster,
}


def parse_cluster(document: Document) -> ClusterConfig:
    """The cluster a document describes. Raises UserError."""
    kind = document.data.get("kind")
    if kind is None:
        raise UserError(f"{document.source}: 'kind' is missing", expected=f"one of {list(KINDS)}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{document.where(('kind',))}: {kind!r} is not a kind of cluster"
            f"{nearest(str(kind), KINDS)}",
            expected=f"one of {', '.join(KINDS)}",
        )
    return parse(KINDS[kind], document)


def load_cluster(name: str, folder: Path, assignments: list[str] | None = None) -> ClusterConfig:
    """The cluster file `name`, found as any recipe is. Raises UserError."""
    path = find_recipe("clusters", name, folder)
    return parse_cluster(override(read_yaml_file(path), assignments or []))


def cluster_key(attempt: int) -> str:
    """Where the cluster of an attempt is recorded."""
    return f"attempts/{attempt:04d}/cluster.yaml"


def cluster_at(run: Run, attempt: int) -> ClusterConfig:
    """The cluster of an attempt. Raises NotFound where none is recorded."""
    key = cluster_key(attempt)
    return parse_cluster(read_yaml(run.record.get(key).decode(), f"{run.uri}/{key}"))


def cluster_of_kind(kind: type[C], run: Run, attempt: int) -> C:
    """The same, for whoever works on that kind alone. Raises DataCorrupt for another."""
    cluster = cluster_at(run, attempt)
    if not isinstance(cluster, kind):
        raise DataCorrupt(f"attempt {attempt} of run {run.id} is recorded on {cluster.kind}")
    return cluster
