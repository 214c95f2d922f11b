"""One examination of a cluster and a store: the client, every node, and what it comes to."""

import secrets
from dataclasses import dataclass

from igpt.clusters.base import ClusterConfig
from igpt.clusters.doctor import storing
from igpt.clusters.doctor.diagnosis import Asked, diagnose
from igpt.clusters.doctor.finding import Finding
from igpt.clusters.doctor.gathering import Gathered, Gatherer, Say, client_report, gather_here
from igpt.clusters.doctor.report import Errand, Report, some_ports
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.ray.config import RayCluster
from igpt.clusters.slurm.config import SlurmCluster
from igpt.errors import IgptError
from igpt.storage import Store


@dataclass(frozen=True)
class Examination:
    """What was found, and who was asked."""

    cluster: str
    store: str
    reports: list[Report]
    findings: list[Finding]

    @property
    def failed(self) -> int:
        """How many findings are failures."""
        return sum(finding.level == "fail" for finding in self.findings)


@dataclass(frozen=True)
class Way:
    """How the nodes of a cluster are reached, and what is asked of them."""

    gather: Gatherer
    asked: Asked
    nodes: int  # at most
    folder: str | None = None
    interface: str | None = None
    submits: bool = True  # whether this machine is none of the nodes


def way_to(cluster: ClusterConfig) -> Way:
    """The way to a cluster of any kind."""
    if isinstance(cluster, SlurmCluster):
        from igpt.clusters.doctor import slurm
        from igpt.clusters.slurm.ray_nodes import gpus_of

        asked = Asked(
            cluster.kind,
            cluster.workers_per_node,
            gpus_of(cluster) or None,
            cluster.device.name,
        )
        folder = str(cluster.shared_folder())
        return Way(slurm.gather, asked, cluster.nodes, folder, cluster.network_interface)
    if isinstance(cluster, LocalCluster):
        asked = Asked(cluster.kind, cluster.workers, device=cluster.device.name)
        return Way(gather_here, asked, 1, submits=False)
    if isinstance(cluster, RayCluster):
        from igpt.clusters.doctor import ray

        asked = Asked(cluster.kind, 1, device=cluster.device.name)
        return Way(ray.gather, asked, 1, interface=cluster.network_interface)
    raise AssertionError(f"no way to a cluster of kind {cluster.kind}")


def examine(cluster: ClusterConfig, root: Store, *, wait: float, say: Say) -> Examination:
    """Examines this machine and every node. wait: seconds for the nodes to start; say: for people.

    What cannot be reached is a finding and no exception.
    """
    way = way_to(cluster)
    errand = Errand(secrets.token_hex(6), root.uri, some_ports(), way.folder, way.interface)
    client = None
    if way.submits:
        say("examining this machine ...")
        client = client_report(errand)
    gathered = Gathered((), way.nodes)
    try:
        gathered = way.gather(cluster, errand, wait, say)
    except IgptError as error:
        gathered = Gathered((), way.nodes, trouble=error.what, mend=error.mend)
    finally:
        reports = list(gathered.reports)
        # Where nobody could write there is nothing, and another wait for the store.
        if any("rate" in one.fact("store") for one in (client, *reports) if one is not None):
            who = ("client", *map(str, range(max(way.nodes, gathered.nodes))))
            root.delete([key for one in who for key in storing.keys(errand.token, one)])
    findings = [*gathered.findings, *diagnose(client, gathered, way.asked)]
    return Examination(cluster.kind, root.uri, reports, findings)
