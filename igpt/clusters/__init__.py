"""Where a run runs: one interface over the kinds of cluster, `local`, `slurm` and `ray`.

propose, accept, submit   a job checked, and started on a cluster
resume, cancel            a run that goes on, or stops
status, look              how a run stands, and what its backend sees of it
pursue_cancel             the same, for whoever waits for a cancel to be carried out
"""

from igpt.clusters.base import Backend, ClusterConfig, Plan
from igpt.clusters.files import load_cluster
from igpt.clusters.standing import look, pursue_cancel, status
from igpt.clusters.steering import cancel, resume
from igpt.clusters.submission import Proposal, Submission, accept, propose, submit

__all__ = [
    "Backend",
    "ClusterConfig",
    "Plan",
    "Proposal",
    "Submission",
    "accept",
    "cancel",
    "load_cluster",
    "look",
    "propose",
    "pursue_cancel",
    "resume",
    "status",
    "submit",
]
