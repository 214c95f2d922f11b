"""Where a run runs: one interface over the kinds of cluster, today `local`.

plan(run) -> Plan      what would be started, as text; what --dry-run shows
submit(run, attempt)   starts the supervisor of the run
look(run)              what its backend sees of its supervisor, a `Sight`
cancel(run)            asks it to stop now
"""

from igpt.clusters.base import Backend, ClusterConfig, Plan
from igpt.clusters.files import load_cluster
from igpt.clusters.submission import Submission, cancel, look, resume, status, submit

__all__ = [
    "Backend",
    "ClusterConfig",
    "Plan",
    "Submission",
    "cancel",
    "load_cluster",
    "look",
    "resume",
    "status",
    "submit",
]
