"""Configuration of a cluster of kind `local`."""

import os
import sys
from typing import Literal

from pydantic import Field

from igpt.clusters.base import ClusterConfig, Limits
from igpt.clusters.figures import FiguresConfig


class LocalCluster(ClusterConfig):
    """Configuration of a local cluster."""

    kind: Literal["local"] = "local"
    workers: int = Field(default=1, ge=1, description="processes that share each batch")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of each worker; null: cores / workers"
    )
    max_parallel: int = Field(default=1, ge=1, description="runs at once on this machine")
    heartbeat_seconds: float = Field(default=5.0, gt=0, le=15)
    grace_seconds: float = Field(
        default=120.0, gt=0, description="for a checkpoint after being asked to stop"
    )
    figures: FiguresConfig = Field(default_factory=FiguresConfig)

    @property
    def most_workers(self) -> int:
        """Always so many."""
        return self.workers

    def limits(self) -> Limits:
        """Its grace, and the device that the file names."""
        return Limits(self.grace_seconds, device=self.device)

    def of_job(self, *, ray: bool) -> "LocalCluster":
        """What a job gets of it: one worker where its Ray has the others' part."""
        return self.model_copy(update={"workers": 1}) if ray else self

    def threads_per_worker(self) -> int:
        """CPU threads of each worker."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return self.threads or max(1, cores // self.workers)
