"""The contract of a backend, and reading a cluster file into the right one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from igpt.config import Document, Strict, nearest, override, parse, read_yaml_file
from igpt.errors import UserError
from igpt.jobs.recipes import find_recipe
from igpt.runs import Run


class ClusterConfig(Strict):
    """Base of every cluster file: what kind it is and how many workers a run gets."""

    kind: str
    workers: int

    def backend(self) -> "Backend":
        """What carries submissions out."""
        raise NotImplementedError


@dataclass(frozen=True)
class Plan:
    """What a submission would start: facts for people, and the exact text that is executed."""

    facts: dict[str, str] = field(default_factory=dict)
    text: str = ""


class Backend(Protocol):
    """One kind of cluster."""

    def plan(self, run_uri: str) -> Plan:
        """What would be started. Pure."""

    def submit(self, run: Run, attempt: int) -> dict[str, Any]:
        """Starts the run's supervisor and returns how to find it again.

        Raises Unreachable where it cannot be started.
        """

    def alive(self, run: Run) -> bool | None:
        """Whether the run's supervisor lives; None where that cannot be known from here."""

    def cancel(self, run: Run) -> None:
        """Makes the supervisor look at the record now; it finds the request to cancel there."""


def _kinds() -> dict[str, type[ClusterConfig]]:
    from igpt.clusters.local import LocalCluster

    return {"local": LocalCluster}


def parse_cluster(document: Document) -> ClusterConfig:
    """The cluster a document describes. Raises UserError."""
    kinds = _kinds()
    kind = document.data.get("kind")
    if kind is None:
        raise UserError(f"{document.source}: 'kind' is missing", expected=f"one of {list(kinds)}")
    if kind not in kinds:
        raise UserError(
            f"{document.where(('kind',))}: {kind!r} is not a kind of cluster"
            f"{nearest(str(kind), kinds)}",
            expected=f"one of {', '.join(kinds)}",
        )
    return parse(kinds[kind], document)


def load_cluster(name: str, folder: Path, assignments: list[str] | None = None) -> ClusterConfig:
    """The cluster file `name`, found as any recipe is. Raises UserError."""
    path = find_recipe("clusters", name, folder)
    return parse_cluster(override(read_yaml_file(path), assignments or []))
