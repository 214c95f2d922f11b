"""What Ray Train does before the workers begin: it tells them who they are and where to meet.

Ray's processes import this module and nothing of torch: only the ranks compute. (`TorchTrainer`
and its `TorchConfig` would bring torch into the driver, Ray's controller and every worker, at every
attempt, and open a process group that nobody uses.)
"""

import secrets
from typing import Any

from ray.train.backend import Backend, BackendConfig

from igpt.clusters.ray.rank import Meeting, describe_place, meeting_to_json, remember_meeting


class Rendezvous(Backend):
    """Tells all workers who they are and where their ranks meet; the group is the ranks' own."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called by Ray Train when all workers are there, in the order of ranks."""
        places = worker_group.execute(describe_place)
        meeting = Meeting(secrets.token_hex(8), tuple(places))
        worker_group.execute(remember_meeting, meeting_to_json(meeting))


class ByRanks(BackendConfig):
    """No process group in Ray's own workers."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What prepares the workers."""
        return Rendezvous
