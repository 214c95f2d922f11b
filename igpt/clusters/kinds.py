"""What carries out a submission to each kind of cluster."""

from igpt.clusters.base import Backend, ClusterConfig
from igpt.clusters.local.backend import LocalBackend
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.ray.config import RayCluster
from igpt.clusters.slurm.config import SlurmCluster


def backend_of(cluster: ClusterConfig) -> Backend:
    """The backend of a cluster. What the others need is not imported."""
    match cluster:
        case LocalCluster():
            return LocalBackend(cluster)
        case SlurmCluster():
            from igpt.clusters.slurm.backend import SlurmBackend

            return SlurmBackend(cluster)
        case RayCluster():
            from igpt.clusters.ray.backend import RayBackend

            return RayBackend(cluster)
    raise TypeError(f"{type(cluster).__name__} is no kind of cluster")
