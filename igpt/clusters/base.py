"""The contract between a run and what it runs on."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field

from igpt.config import Strict
from igpt.runs import Run
from igpt.runs.state import Sight


class DeviceConfig(Strict):
    """What one worker computes on, as far as the user says; `plan` reckons with it."""

    name: str | None = Field(default=None, description="as the vendor writes it, e.g. A100")
    memory_gb: float | None = Field(default=None, gt=0, description="memory of one worker, GB")
    tokens_per_second: float | None = Field(
        default=None, gt=0, description="of one worker; null: measured by runs of the same network"
    )


@dataclass(frozen=True)
class Limits:
    """What bounds a run on a cluster."""

    grace_seconds: float  # for a last checkpoint, from being asked to stop to being killed
    device: DeviceConfig
    time_limit: float | None = None  # seconds of one attempt; None where there is none


class ClusterConfig(Strict, ABC):
    """Base of every cluster file: what kind it is and how many workers a run gets."""

    kind: str
    workers: int
    device: DeviceConfig = DeviceConfig()

    @abstractmethod
    def backend(self) -> "Backend":
        """What carries submissions out."""

    @abstractmethod
    def limits(self) -> Limits:
        """What bounds a run, for `plan`."""


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

    def look(self, run: Run) -> Sight:
        """What can be seen of the run's supervisor from here."""

    def cancel(self, run: Run) -> None:
        """Makes the supervisor look at the record now; it finds the request to cancel there."""
