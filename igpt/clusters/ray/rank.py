"""In a worker of Ray Train: the parent of one rank.

Ray Train places the workers, says which rank each is, and ends them together. The rank itself is a
process of its own, as on every cluster, so that its last lines, its stacks and its memory are seen
from outside, and so that Ray's process needs no torch and no device.
"""

import json
import logging
import os
import platform
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
import ray.train

from igpt.clusters.files import cluster_of_kind
from igpt.clusters.network import free_port, interfaces
from igpt.clusters.ranks.exits import exits_name, write_exits
from igpt.clusters.ranks.requests import DELETED, FENCED, Requests
from igpt.clusters.ranks.start import Ranks
from igpt.clusters.ranks.watch import run_ranks
from igpt.clusters.ray.config import RayCluster
from igpt.clusters.ray.gauges import gauges
from igpt.jobs.base import find_job
from igpt.runs import Run
from igpt.runs.failures import REQUEUE
from igpt.runs.reading import read_json
from igpt.runs.record import run_at
from igpt.runs.shipped import CODE
from igpt.storage.patience import insist

log = logging.getLogger("igpt")

#: Where `Rendezvous` leaves the meeting for the train function.
MEETING = "IGPT_RAY_MEETING"
#: So long the store may be away when an attempt begins.
_STORE_SECONDS = 120.0
#: Seconds between looks at the record.
LOOK_SECONDS = 3.0


@dataclass(frozen=True)
class Place:
    """Where a worker is."""

    node: str  # as Ray names it
    host: str
    address: str
    port: int  # free when it was looked for


@dataclass(frozen=True)
class Meeting:
    """Who the ranks of an attempt are and where they meet, in the order of ranks."""

    launch: str  # a random word: tells this start of the attempt from another's
    places: tuple[Place, ...]


def meeting_key(attempt: int) -> str:
    """Where rank 0's parent says who the ranks of an attempt are."""
    return f"attempts/{attempt:04d}/meeting.json"


def read_meeting(run: Run, attempt: int) -> Meeting:
    """The meeting of an attempt. Raises NotFound where its workers have not begun."""
    return _meeting(read_json(run.record, meeting_key(attempt)))


def describe_place() -> Place:
    """This worker's place, with a port that is free at the moment."""
    node = ray.get_runtime_context().get_node_id()
    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    return Place(node, platform.node(), address, free_port())


def remember_meeting(text: str) -> None:
    """Leaves the meeting, as JSON, for the train function of this worker."""
    os.environ[MEETING] = text


def meeting_to_json(meeting: Meeting) -> str:
    """A meeting as text."""
    return json.dumps(asdict(meeting))


def train(config: dict[str, Any]) -> None:
    """The train function: runs one rank to its end. config: `run`, its address, and `attempt`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run, attempt = run_at(config["run"]), int(config["attempt"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    meeting = _meeting(json.loads(os.environ[MEETING]))
    bad_news = [exits_name(other, bad=True) for other in range(world_size) if other != rank]
    # Ray runs this in a thread, where signals cannot be handled; it ends us by killing us anyway.
    requests = Requests(run, LOOK_SECONDS, bad_news=bad_news, signals=False)
    # A node that cannot reach the store keeps all others waiting.
    cluster = insist(partial(cluster_of_kind, RayCluster, run, attempt), _STORE_SECONDS)
    if rank == 0:
        body = meeting_to_json(meeting).encode()
        insist(partial(run.record.put, meeting_key(attempt), body), _STORE_SECONDS)
    ranks = Ranks(
        workers=1,
        environment=_environment(cluster, meeting, rank, shared=find_job(run.spec().job).ray),
        master_address=meeting.places[0].address,
        master_port=meeting.places[0].port,
        node=rank,
        nodes=world_size,
        heartbeat_seconds=cluster.heartbeat_seconds,
        grace_seconds=cluster.grace_seconds,
        hang_seconds=cluster.hang_seconds,
    )
    exits = run_ranks(run, attempt, ranks, partial(requests.of, attempt), show=gauges(run.id))
    if requests.of(attempt) in (DELETED, FENCED):
        return
    bad = any(one.code not in (0, REQUEUE) for one in exits)
    insist(partial(write_exits, run, attempt, rank, exits, bad=bad), seconds=60.0)


def _environment(
    cluster: RayCluster, meeting: Meeting, rank: int, *, shared: bool
) -> dict[str, str]:
    """shared: the job itself spreads over the Ray cluster, and has to find it."""
    environment = {
        "IGPT_LAUNCH": meeting.launch,
        CODE: "",  # Ray has its own place for it; ours may be left of a job that Ray runs in
        "IGPT_MOST_WORKERS": str(cluster.most_workers),
        "OMP_NUM_THREADS": str(cluster.cpus_per_worker),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        **interfaces(meeting.places[0].address, first=rank == 0, chosen=cluster.network_interface),
    }
    here = ray.get_runtime_context()
    # Ray does not hide the devices of others from who asked for none, and Ray Train shows a worker
    # those of all workers of its node; a rank uses its own.
    own = here.get_accelerator_ids().get("GPU", []) if cluster.gpus_per_worker else []
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    if shared:
        environment["RAY_ADDRESS"] = here.gcs_address
        environment["IGPT_RAY_RUNTIME_ENV"] = json.dumps(_handed_on(dict(here.runtime_env)))
    return environment


def _handed_on(runtime: dict[str, Any]) -> dict[str, Any]:
    """What of a worker's environment its own Ray tasks need: the code, and the way to the store."""
    return {name: runtime[name] for name in ("working_dir", "env_vars") if runtime.get(name)}


def _meeting(said: dict[str, Any]) -> Meeting:
    places = tuple(Place(**place) for place in said["places"])
    return Meeting(said["launch"], places)
