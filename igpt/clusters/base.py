"""The contract between a run and what it runs on."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol

from igpt.config import Strict
from igpt.runs import Run


class ClusterConfig(Strict, ABC):
    """Base of every cluster file: what kind it is and how many workers a run gets."""

    kind: str
    workers: int

    @abstractmethod
    def backend(self) -> "Backend":
        """What carries submissions out."""


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
