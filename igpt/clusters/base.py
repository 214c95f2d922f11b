"""The contract between a run and what it runs on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field

from igpt.clusters.notify import NotifyConfig
from igpt.config import Strict
from igpt.runs import Run
from igpt.runs.failures import RetryBudget
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
    """Base of every cluster file: what kind it is, and what a run gets."""

    kind: str
    heartbeat_seconds: float = Field(
        default=10.0, gt=0, le=15, description="between signs of life; silent for 60 is stalled"
    )
    hang_seconds: float | None = Field(
        default=1800.0, gt=0, description="without a step: stacks are dumped, ranks restarted"
    )
    retries: RetryBudget = Field(default_factory=RetryBudget)
    notify: NotifyConfig = Field(default_factory=NotifyConfig)
    device: DeviceConfig = DeviceConfig()

    @property
    @abstractmethod
    def most_workers(self) -> int:
        """Ranks that share each batch; the most that there may be where the number may change."""

    @abstractmethod
    def limits(self) -> Limits:
        """What bounds a run, for `plan`."""


@dataclass(frozen=True)
class Plan:
    """What a submission would start: facts for people, and the exact text that is executed."""

    facts: dict[str, str] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Launch:
    """What a backend is asked to start: nothing of the client's goes along but this."""

    run_uri: str
    attempt: int
    code: str | None = None  # digest of the code that runs; None: the installed package
    after: tuple[str, ...] = ()  # the scheduler's ids of the jobs that have to succeed first
    environment: Mapping[str, str] = field(default_factory=dict)  # how to reach the store
    ray: bool = False  # the job spreads its own work over Ray (igpt.jobs.Job)

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.run_uri.rpartition("/")[2]


class Backend(Protocol):
    """One kind of cluster."""

    def plan(self, launch: Launch) -> Plan:
        """What would be started. Changes nothing."""

    def check(self) -> None:
        """Raises UserError or Unreachable where nothing can be submitted from here."""

    def submit(self, run: Run, launch: Launch) -> dict[str, Any]:
        """Starts what looks after the run and returns how to find it again.

        Raises Unreachable where it cannot be started, UserError where it is refused.
        """

    def jobs_of(self, runs: Sequence[Run]) -> tuple[str, ...]:
        """How the scheduler knows runs that another is to wait for; none where it need not know.

        Raises UserError where it cannot wait for one of them.
        """

    def look(self, run: Run) -> Sight:
        """What can be seen of the run's supervisor from here."""

    def cancel(self, run: Run) -> bool:
        """Makes whoever looks after the run find the request to cancel in its record, now.

        Returns False where nobody is there to find it: the caller records the end.
        """
