"""In a job of Slurm, one on each node: the parent of that node's ranks.

    srun python -m igpt.clusters.slurm.node RUN_URI ATTEMPT

Node 0 decides which attempt this start of the job is, and where its ranks meet; the others read it
in the run's record by the word of this launch, `<job>.<restarts>`. Slurm's USR2 (the time limit or
a preemption is near) and TERM only set a flag; all ranks agree, save and stop. How they ended is
written down for igpt.clusters.slurm.after, which decides what follows.
"""

import json
import logging
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial

from igpt.clusters.node import DELETED, FENCED, Ranks, run_ranks
from igpt.clusters.outcome import insist, tell
from igpt.clusters.requests import Requests
from igpt.clusters.slurm.config import SlurmCluster, slurm_at
from igpt.clusters.slurm.network import interface_of, interface_towards
from igpt.clusters.slurm.turn import START_MARK, Turn, hosts_of, meeting_key, take_turn
from igpt.errors import NotFound, Superseded, Unreachable
from igpt.jobs.context import Stopped
from igpt.runs import Run
from igpt.runs.attempts import attempt_numbers
from igpt.runs.failures import REQUEUE, FailureClass, RankExit
from igpt.runs.reading import read_json
from igpt.runs.record import open_run
from igpt.storage import open_store

log = logging.getLogger("igpt")

#: How long the other nodes wait for node 0 to say where the ranks meet.
MEETING_SECONDS = 1800.0


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a launch meet."""

    launch: str
    address: str
    port: int
    hosts: list[str]  # as Slurm names them


def main(run_uri: str, submitted: int) -> int:
    """Looks after this node's ranks; returns 0 where all ended as they should."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    root_uri, _, identifier = run_uri.rpartition("/runs/")
    run = open_run(open_store(root_uri), identifier)
    turn = Turn.of_job(os.environ, submitted)
    log.info("%s %s", START_MARK, turn.launch)
    node, nodes = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_NNODES"])
    bad_news = [exits_name(one, bad=True) for one in range(nodes) if one != node]
    # Its handlers first: Slurm may warn at any moment.
    requests = Requests(run, 5.0, bad_news=bad_news)
    cluster = insist(partial(slurm_at, run, submitted))
    try:
        if node == 0:
            attempt = insist(partial(take_turn, run, turn, cluster))
            hosts = hosts_of(os.environ.get("SLURM_JOB_NODELIST", ""))
            meeting = Meeting(turn.launch, _own_address(), _free_port(), hosts)
            body = json.dumps(asdict(meeting)).encode()
            insist(partial(run.record.put, meeting_key(attempt), body))
        else:
            attempt, meeting = _await_meeting(run, turn, requests)
    except Superseded as error:
        log.error("%s", error)
        return 6
    except Stopped as stopped:
        log.info("%s", stopped)
        return 0
    interface = cluster.network_interface or (
        interface_of(meeting.address) if node == 0 else interface_towards(meeting.address)
    )
    ranks = Ranks(
        workers=cluster.workers_per_node,
        environment=_environment(cluster, turn, interface),
        master_address=meeting.address,
        master_port=meeting.port,
        node=node,
        nodes=nodes,
        heartbeat_seconds=cluster.heartbeat_seconds,
        grace_seconds=cluster.grace_seconds,
        hang_seconds=cluster.hang_seconds,
    )
    if node == 0:
        tell(run, attempt, cluster.notify, "started")
    exits = run_ranks(run, attempt, ranks, partial(requests.of, attempt))
    if (why := requests.of(attempt)) in (DELETED, FENCED):
        return 6 if why == FENCED else 0
    bad = any(one.code not in (0, REQUEUE) for one in exits)
    body = json.dumps({"exits": [asdict(one) for one in exits]}).encode()
    insist(partial(run.record.put, exits_key(attempt, node, bad=bad), body), patience=60.0)
    return int(bad)


def exits_name(node: int, *, bad: bool) -> str:
    """In an attempt's folder: how a node's ranks ended; the name tells the others whether badly."""
    return f"exits-{node:04d}-{'bad' if bad else 'good'}.json"


def exits_key(attempt: int, node: int, *, bad: bool) -> str:
    """Where a node says how its ranks ended."""
    return f"attempts/{attempt:04d}/{exits_name(node, bad=bad)}"


def read_exits(run: Run, attempt: int, node: int) -> list[RankExit] | None:
    """How the ranks of a node ended; None where it did not say."""
    for bad in (True, False):
        try:
            said = read_json(run.record, exits_key(attempt, node, bad=bad))
        except NotFound:
            continue
        return [
            RankExit(**{**one, "failure": one["failure"] and FailureClass(one["failure"])})
            for one in said["exits"]
        ]
    return None


def _await_meeting(run: Run, turn: Turn, requests: Requests) -> tuple[int, Meeting]:
    """srun ends this node's task where node 0 fails, so the wait may be as long as it likes."""
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        if requests.terminating:
            raise Stopped("stopped while node 0 was starting")
        newest = insist(partial(attempt_numbers, run.record))[-1:]
        for attempt in newest:
            try:
                said = insist(partial(read_json, run.record, meeting_key(attempt)))
            except NotFound:
                continue
            meeting = Meeting(**said)
            if meeting.launch == turn.launch:
                return attempt, meeting
        time.sleep(0.2)
    raise Unreachable(f"node 0 of job {turn.launch} has not begun within {MEETING_SECONDS:.0f} s")


def _environment(cluster: SlurmCluster, turn: Turn, interface: str | None) -> dict[str, str]:
    environment = {
        "IGPT_LAUNCH": turn.launch,
        "OMP_NUM_THREADS": str(cluster.cpus_per_worker),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    if interface is not None:
        # gloo would take the address that the node's own name resolves to: often a loopback.
        environment["GLOO_SOCKET_IFNAME"] = interface
    if cluster.network_interface is not None:
        environment["NCCL_SOCKET_IFNAME"] = cluster.network_interface
    return environment


def _own_address() -> str:
    """This node's address as the other nodes reach it: where srun itself takes its reports."""
    return os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostbyname(socket.gethostname())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
