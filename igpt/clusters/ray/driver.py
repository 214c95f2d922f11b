"""The entrypoint of a Ray job: the supervisor of one run, attempt after attempt.

    python -m igpt.clusters.ray.driver RUN_URI ATTEMPT

It runs on the head node and computes nothing. Ray never starts a job again: if this process dies
the run is stalled, its ranks save and stop, and `igpt-jobs resume` is the answer. `ray job stop`
leaves it three seconds, in which it asks the ranks to save.
"""

import logging
import os
import platform
import sys
from functools import partial
from typing import TYPE_CHECKING

from igpt.clusters.attempts import wait_for_others, work_off
from igpt.clusters.files import cluster_of_kind
from igpt.clusters.ranks.requests import Requests
from igpt.clusters.ray.backend import job_id
from igpt.clusters.ray.config import RayCluster
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.failures import Verdict
from igpt.runs.record import run_at
from igpt.storage.patience import insist

if TYPE_CHECKING:
    from igpt.clusters.ray.room import Size

log = logging.getLogger("igpt")

#: Read by Ray when it is imported. In this order: the run's state is served by the dashboard;
#: workers stay in the folder with the code; drained nodes are ours to look for; what has become of
#: the workers is asked four times a second, so that a run that has ended soon gives back what it
#: had; no reports to its makers.
_SETTINGS = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_USAGE_STATS_ENABLED": "0",
}
#: Seconds between looks at the record.
LOOK_SECONDS = 3.0


def main(run_uri: str, attempt: int) -> int:
    """Supervises a run. The exit code is for Ray; the record is the truth."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run = run_at(run_uri)
    requests = Requests(run, LOOK_SECONDS)
    cluster = insist(partial(cluster_of_kind, RayCluster, run, attempt))
    insist(partial(_record_launch, run, attempt))
    if wait_for_others(run, attempt, cluster, requests):
        work_off(run, attempt, cluster, requests, Work(run, cluster, requests))
    return insist(partial(_exit_code, run))


class Work:
    """Carries out attempts of a run, one after the other, on the Ray that this node is part of."""

    def __init__(self, run: Run, cluster: RayCluster, requests: Requests) -> None:
        self.run = run
        self.cluster = cluster
        self.requests = requests
        self.size: Size | None = None

    def __call__(self, attempt: int) -> Verdict:
        """One attempt, to its end."""
        insist(partial(self.run.beat, attempt, "queued", {}))  # what follows takes seconds
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        from igpt.clusters.ray.fitting import fit
        from igpt.clusters.ray.room import Size

        self.size = self.size or Size()
        if not ray.is_initialized():
            ray.init(address="auto", log_to_driver=True)
            self.requests.listen()
        asked_to_stop = partial(self.requests.of, attempt)
        return fit(self.run, attempt, self.cluster, self.size, asked_to_stop)


def _record_launch(run: Run, attempt: int) -> None:
    """The client may have died before it could."""
    if not any(event.attempt == attempt for event in run.events({ev.LAUNCHED})):
        where = {"job": job_id(run, attempt), "host": platform.node(), "pid": os.getpid()}
        run.event(ev.LAUNCHED, writer="supervisor", attempt=attempt, **where)


def _exit_code(run: Run) -> int:
    """The run's outcome as an exit code, so that Ray's own list of jobs tells it too."""
    return run.status().exit_code if run.record.exists("spec.yaml") else 5


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
