"""A Ray cluster inside a job of Slurm: one daemon on each of its nodes, for one attempt.

Node 0 makes the token, starts the head and says in meeting.json where it is; the others join it and
say so, each in the record; node 0 waits for all of them. What then runs on the cluster is not
decided here. A Ray that does not start, or that ends by itself, raises RayFailed.
"""

import json
import logging
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from igpt.clusters.dashboard import Dashboard, write_dashboard
from igpt.clusters.network import address_of, address_towards
from igpt.clusters.ranks.exits import exits_name
from igpt.clusters.ranks.requests import DELETED, FENCED, HANG, PEERS
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.ray_daemon import (
    Daemon,
    Ports,
    RayNode,
    daemon,
    environment,
    free_ports,
    is_free,
    listens,
)
from igpt.errors import IgptError
from igpt.jobs.context import Stopped
from igpt.runs import Run
from igpt.runs.failures import FailureClass
from igpt.storage.patience import insist

log = logging.getLogger("igpt")

#: For Ray to start on a node, and then on all: Python may have to come over a slow file system.
START_SECONDS = 300.0
#: Beyond their grace, for node 0's ranks to say how they ended.
_PATIENCE_SECONDS = 15.0
_TICK = 0.1
_LOOK_SECONDS = 2.0  # between looks at the record


class RayFailed(IgptError):
    """Ray did not start on a node, or it ended there by itself."""

    def __init__(self, what: str, failure: FailureClass) -> None:
        super().__init__(what)
        self.failure = failure


@dataclass(frozen=True)
class Seat:
    """A node of a start of a job, and what it is to know of Ray."""

    run: Run
    attempt: int
    launch: str  # the word of this start of the job
    node: int
    hosts: Sequence[str]  # of all nodes, as Slurm names them; none where it could not be asked
    cluster: SlurmCluster
    asked_to_stop: Callable[[], str | None]

    @property
    def folder(self) -> Path:
        """The job's, which all nodes share and the user alone can read."""
        return Path(os.environ["IGPT_FOLDER"])

    @property
    def token(self) -> Path:
        """The file with the token of this start's Ray."""
        return self.folder / f"ray-{self.launch}.token"

    def host(self, node: int) -> str:
        """How people know a node."""
        return self.hosts[node] if node < len(self.hosts) else f"node {node}"

    def stop_where_asked(self) -> None:
        """Raises Stopped where the attempt is to stop."""
        if reason := self.asked_to_stop():
            raise Stopped(f"stopped while Ray was starting: {reason}")


@dataclass(frozen=True)
class RayHere:
    """Ray as it runs on this node."""

    seat: Seat
    daemon: Daemon
    head: str  # address:port at which the head listens
    dashboard: int | None = None  # its port; None on other nodes than the head's

    @property
    def environment(self) -> Mapping[str, str]:
        """With which a process of this node finds the cluster."""
        return {"RAY_ADDRESS": self.head, **environment(self.seat.token)}

    def failure(self) -> RayFailed:
        """That it has ended, which it never should by itself."""
        where, why = self.seat.host(self.seat.node), self.daemon.last_words()
        return RayFailed(f"Ray ended on {where}: {why}", FailureClass.NODE)

    def ends_within(self, seconds: float) -> bool:
        """Waits so long, or until it ends; returns whether it has."""
        deadline = time.monotonic() + seconds
        while not self.daemon.ended and time.monotonic() < deadline:
            time.sleep(_TICK)
        return self.daemon.ended


@contextmanager
def head(seat: Seat, address: str) -> Iterator[RayHere]:
    """The head, on node 0, with the address at which the other nodes reach it.

    Raises RayFailed where it does not start, Stopped where the attempt is to stop.
    """
    with ExitStack() as stack:
        with _starting(seat):
            for old in seat.folder.glob(f"ray-{seat.launch.partition('.')[0]}.*.token"):
                old.unlink(missing_ok=True)  # of an earlier start of this job, which was killed
            _write_secret(seat.token, secrets.token_hex(32))
            stack.callback(seat.token.unlink, missing_ok=True)
            ports = Ports(*free_ports(seat.launch, 3, is_free))
            running = stack.enter_context(_daemon(seat, address, ports))
        _await_start(seat, running)
        yield RayHere(seat, running, f"{address}:{ports.head}", ports.dashboard)


@contextmanager
def joined(seat: Seat, where: str) -> Iterator[RayHere]:
    """Ray on another node, part of the cluster whose head is at `where`; raises as `head` does."""
    address = own_address(seat.cluster, where.rpartition(":")[0])
    with ExitStack() as stack:
        with _starting(seat):
            running = stack.enter_context(_daemon(seat, address, where))
        _await_start(seat, running)
        key = f"{_folder(seat)}/{_joined_name(seat.node)}"
        insist(partial(seat.run.record.put, key, json.dumps({"address": address}).encode()))
        yield RayHere(seat, running, where)


def await_nodes(here: RayHere) -> None:
    """Returns on node 0 when every node has joined. Raises RayFailed and Stopped."""
    seat = here.seat
    deadline = time.monotonic() + START_SECONDS
    while missing := _missing(seat):
        if here.daemon.ended:
            raise here.failure()
        seat.stop_where_asked()
        if time.monotonic() > deadline:
            names = ", ".join(seat.host(node) for node in missing)
            why = f"{names} did not join Ray within {START_SECONDS:.0f} s"
            raise RayFailed(why, FailureClass.NODE)
        time.sleep(_LOOK_SECONDS / 4)
    log.info("Ray runs on %d nodes, its head at %s", seat.cluster.nodes, here.head)


def announce(here: RayHere) -> None:
    """Writes down where node 0 serves the dashboard, which Ray can do without if it must."""
    address = here.head.rpartition(":")[0]
    assert here.dashboard is not None
    if not listens(address, here.dashboard):
        log.warning("Ray's dashboard did not start: the run has none")
        return
    dashboard = Dashboard(
        host=here.seat.host(0) if here.seat.hosts else address,
        address=address,
        port=here.dashboard,
        through="ssh",
        login=os.environ.get("SLURM_SUBMIT_HOST"),
    )
    insist(partial(write_dashboard, here.seat.run, here.seat.attempt, dashboard))
    log.info("Ray's dashboard asks for the token in %s", here.seat.token)


def hold(here: RayHere) -> None:
    """Keeps this node in the cluster until node 0 has said how its rank ended.

    Or until that is waited for in vain. Raises RayFailed where Ray ends before.
    """
    seat = here.seat
    deadline = float("inf")
    while not _is_over(seat) and time.monotonic() < deadline:
        reason = seat.asked_to_stop()
        if reason in (DELETED, FENCED, PEERS, HANG):
            return
        if reason is not None:  # the rank saves, and may need what runs here
            grace = seat.cluster.grace_seconds + _PATIENCE_SECONDS
            deadline = min(deadline, time.monotonic() + grace)
        # The head ends, and this node's Ray with it, after node 0 has said how it went.
        if here.ends_within(_LOOK_SECONDS) and not _is_over(seat):
            raise here.failure()


def own_address(cluster: SlurmCluster, other: str) -> str:
    """The address at which the node that has `other` reaches this one. Raises RayFailed."""
    interface = cluster.network_interface
    if interface is None:
        return address_towards(other)
    address = address_of(interface)
    if address is None:
        why = f"network_interface: {interface} has no IPv4 address on {platform.node()}"
        raise RayFailed(why, FailureClass.USER_ERROR)
    return address


def gpus_of(cluster: SlurmCluster) -> int:
    """The GPUs of each node, from `gpus_per_node` or `gres`: `8`, `a100:8`, `gpu:a100:4,disk:1`."""
    wanted = str(cluster.gpus_per_node or "")
    if not wanted:
        parts = (cluster.gres or "").split(",")
        wanted = ",".join(part for part in parts if part.partition(":")[0] in ("gpu", "gres/gpu"))
    counts = [part.partition("(")[0].rpartition(":")[2] for part in wanted.split(",") if part]
    return sum(int(count) if count.isdecimal() else 1 for count in counts)


def _daemon(seat: Seat, address: str, role: Ports | str) -> AbstractContextManager[Daemon]:
    cluster = seat.cluster
    cpus = cluster.workers_per_node * cluster.cpus_per_worker
    node = RayNode(address, cpus, gpus_of(cluster), role)
    return daemon(node, seat.token, seat.folder / f"ray-{seat.launch}-{seat.node:04d}")


@contextmanager
def _starting(seat: Seat) -> Iterator[None]:
    """Says of what goes wrong here that it kept Ray from starting."""
    try:
        yield
    except OSError as error:
        why = f"Ray did not start on {seat.host(seat.node)}: {error}"
        raise RayFailed(why, FailureClass.CRASH) from error


def _await_start(seat: Seat, running: Daemon) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not running.started:
        late = time.monotonic() > deadline
        if running.ended or late:
            raise not_started(seat.host(seat.node), running.last_words(), late=late)
        seat.stop_where_asked()
        time.sleep(_TICK)


def not_started(host: str, words: str, *, late: bool) -> RayFailed:
    """That Ray did not start on a node, and its last words; where it took too long, that is slow.

    late: by our own clock. Ray itself gives a node that is busy half a minute.
    """
    slow = late or "timed out during startup" in words
    within = f" within {START_SECONDS:.0f} s" if late else ""
    why = f"Ray did not start on {host}{within}: {words}"
    return RayFailed(why, FailureClass.NODE if slow else FailureClass.CRASH)


def _missing(seat: Seat) -> list[int]:
    """The nodes that have not joined yet."""
    there = _written(seat)
    return [n for n in range(1, seat.cluster.nodes) if _joined_name(n) not in there]


def _is_over(seat: Seat) -> bool:
    """Whether node 0 has said how its rank ended."""
    return not _written(seat).isdisjoint(exits_name(0, bad=bad) for bad in (True, False))


def _written(seat: Seat) -> set[str]:
    """The names in the attempt's folder; none while the store is away."""
    try:
        return set(seat.run.record.children(_folder(seat)))
    except IgptError as error:
        log.warning("%s", error)
        return set()


def _folder(seat: Seat) -> str:
    return f"attempts/{seat.attempt:04d}"


def _joined_name(node: int) -> str:
    """In an attempt's folder: by being there it says that the node has joined."""
    return f"ray-{node:04d}.json"


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
