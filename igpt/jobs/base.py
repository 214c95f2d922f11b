"""The contract of a job, and how jobs are found by name.

A job is an entry point of the group `igpt.jobs`. It has three parts: a configuration class; a
`prepare` that the client calls at submission (checks the inputs, fills in what they decide, imports
nothing heavy); and an entry, named as text, that only the worker imports.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from igpt.config import Strict, nearest
from igpt.errors import UserError
from igpt.jobs.estimate import Need
from igpt.storage import Store

if TYPE_CHECKING:
    from igpt.jobs.context import Context


class JobConfig(Strict):
    """Base of every job's configuration; `job` says which job the rest is for."""

    job: str


class EvaluationConfig(JobConfig):
    """Base of the configurations of jobs that work with a trained model."""

    model: str = Field(default="latest", description="a run, latest, or a checkpoint's address")


@dataclass(frozen=True)
class Preparation:
    """What a job knows when it is submitted."""

    root: Store
    folder: Path  # where the user stands; relative paths in a recipe begin here
    workers: int
    dry_run: bool = False  # nothing may be written, not even to try


@dataclass(frozen=True)
class Prepared:
    """A submission that has been checked."""

    config: JobConfig  # complete: what the inputs decide is filled in
    inputs: dict[str, Any] = field(default_factory=dict)  # digests of what it reads
    facts: dict[str, str] = field(default_factory=dict)  # what the user wants to see beforehand
    need: Need | None = None  # what it takes; None where the job does not say


@dataclass(frozen=True)
class Job:
    """One kind of work."""

    name: str
    summary: str
    config: type[JobConfig]
    prepare: Callable[[Any, Preparation], Prepared]
    entry: str  # "module:function", called as function(config, context) -> result, plain data
    ray: bool = False  # it spreads its own work over the Ray cluster it finds; it is started once

    def load_entry(self) -> Callable[[Any, "Context"], dict[str, Any]]:
        """The function that carries it out; imports torch and the like."""
        module, _, function = self.entry.partition(":")
        loaded: Callable[[Any, Context], dict[str, Any]] = getattr(import_module(module), function)
        return loaded


@cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group="igpt.jobs")}


def job_names() -> list[str]:
    """The names of all installed jobs."""
    return sorted(_entry_points())


def find_job(name: str) -> Job:
    """The job of this name. Raises UserError with the nearest right name."""
    points = _entry_points()
    if name not in points:
        raise UserError(
            f"there is no job {name!r}{nearest(name, points)}",
            expected=f"one of {', '.join(sorted(points))}",
        )
    job = points[name].load()
    assert isinstance(job, Job)
    return job
