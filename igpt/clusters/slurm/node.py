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
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial

from igpt.clusters.figures import recorded
from igpt.clusters.files import cluster_of_kind
from igpt.clusters.network import free_port, interfaces
from igpt.clusters.outcome import tell
from igpt.clusters.ranks.exits import exits_name, write_exits
from igpt.clusters.ranks.progress import Show, together
from igpt.clusters.ranks.requests import DELETED, FENCED, PEERS, Requests
from igpt.clusters.ranks.start import Ranks
from igpt.clusters.ranks.watch import run_ranks
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.ray_figures import shown_by_ray
from igpt.clusters.slurm.ray_nodes import (
    RayFailed,
    RayHere,
    Seat,
    announce,
    await_nodes,
    head,
    hold,
    joined,
    own_address,
)
from igpt.clusters.slurm.turn import START_MARK, Turn, hosts_of, meeting_key, take_turn
from igpt.errors import IgptError, NotFound
from igpt.jobs.base import find_job
from igpt.jobs.context import Stopped
from igpt.jobs.explaining import explain
from igpt.runs import Run
from igpt.runs.attempts import attempt_numbers
from igpt.runs.failures import REQUEUE, RankExit
from igpt.runs.reading import read_json
from igpt.runs.record import run_at
from igpt.runs.shipped import insist_on_code
from igpt.storage.patience import insist

log = logging.getLogger("igpt")

#: How long the other nodes wait for node 0 to say where the ranks meet.
MEETING_SECONDS = 1800.0
#: A store that is away is waited for so long while no rank is at work: the nodes are held for it.
_STORE_SECONDS = 300.0


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a launch meet."""

    launch: str
    address: str
    port: int
    hosts: list[str]  # as Slurm names them
    ray: str | None = None  # address:port of Ray's head, where Ray is started


@dataclass(frozen=True)
class Start:
    """This node in a start of the job, once it is known which attempt that is."""

    run: Run
    turn: Turn
    cluster: SlurmCluster
    requests: Requests
    node: int
    nodes: int
    attempt: int

    def asked_to_stop(self) -> str | None:
        """Why the attempt should stop, if it should."""
        return self.requests.of(self.attempt)


def main(run_uri: str, submitted: int) -> int:
    """Looks after this node's ranks; returns 0 where all ended as they should.

    Else 1, or what ended it before it could give an account: 3 for a store that is away, 6 for a
    run that is another's. What follows, igpt.clusters.slurm.after decides.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run = run_at(run_uri)
    turn = Turn.of_job(os.environ, submitted)
    log.info("%s %s", START_MARK, turn.launch)
    foreign = _foreign_code(run)
    node, nodes = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_NNODES"])
    bad_news = [exits_name(one, bad=True) for one in range(nodes) if one != node]
    # Its handlers first: Slurm may warn at any moment.
    requests = Requests(run, 5.0, bad_news=bad_news)
    try:
        cluster = insist(partial(cluster_of_kind, SlurmCluster, run, submitted), _STORE_SECONDS)
        meeting = None
        if node == 0:
            attempt = insist(partial(take_turn, run, turn, cluster), _STORE_SECONDS)
        else:
            attempt, meeting = _await_meeting(run, turn, requests)
        start = Start(run, turn, cluster, requests, node, nodes, attempt)
        if foreign is not None:
            first = node * cluster.workers_per_node
            return _account(start, [RankExit(first, *explain(foreign))])
        return _see_through(start, meeting)
    except Stopped as stopped:
        log.info("%s", stopped)
        return 0
    except IgptError as error:
        log.error("%s", error)
        return error.exit_code


def _see_through(start: Start, meeting: Meeting | None) -> int:
    """Works on the attempt to its end, and says how that was; returns the parent's exit code."""
    try:
        with ExitStack() as stack:
            # Within: Ray may end on this node when the others can know how it went.
            return _account(start, _work(start, meeting, stack))
    except Stopped as stopped:
        log.info("%s", stopped)
        return _account(start, [RankExit(0, REQUEUE)] if start.node == 0 else [])
    except RayFailed as failed:
        log.error("%s", failed)
        return _account(start, [_of_ray(start, failed)])


def _foreign_code(run: Run) -> IgptError | None:
    """Why the code that runs here is not the run's, and cannot be; None where it is."""
    try:
        insist(partial(insist_on_code, run.root), _STORE_SECONDS)
    except IgptError as error:
        log.error("%s", error)
        return error
    return None


def _work(start: Start, meeting: Meeting | None, stack: ExitStack) -> list[RankExit]:
    """Starts Ray where it is needed, then the ranks; returns how those of this node ended.

    meeting: None on node 0, which calls it.
    """
    cluster = start.cluster
    spreads = find_job(insist(start.run.spec, _STORE_SECONDS).job).ray
    ray: RayHere | None = None
    if meeting is None:
        hosts = hosts_of(os.environ.get("SLURM_JOB_NODELIST", ""))
        address = _own_address()
        if spreads or cluster.ray == "always":
            seat = _seat(start, hosts)
            ray = stack.enter_context(head(seat, own_address(cluster, address)))
        where = None if ray is None else ray.head
        meeting = Meeting(start.turn.launch, address, free_port(), hosts, where)
        body = json.dumps(asdict(meeting)).encode()
        key = meeting_key(start.attempt)
        insist(partial(start.run.record.put, key, body), _STORE_SECONDS)
    elif meeting.ray is not None:
        ray = stack.enter_context(joined(_seat(start, meeting.hosts), meeting.ray))
    if ray is not None and start.node == 0:
        await_nodes(ray)
        announce(ray)
    if ray is not None and spreads and start.node != 0:
        hold(ray)
        return []
    if start.node == 0:
        tell(start.run, start.attempt, cluster.notify, "started")
    if ray is None:
        return _run(start, _ranks(start, meeting, {}), start.asked_to_stop)
    if spreads:
        return _run_over_ray(start, meeting, ray)
    return _run_beside_ray(start, meeting, ray)


def _run(
    start: Start, ranks: Ranks, asked_to_stop: Callable[[], str | None], *shows: Show
) -> list[RankExit]:
    figures = start.cluster.figures
    with recorded(figures, start.run, start.attempt, node=start.node) as show:
        show = together(show, *shows)
        return run_ranks(start.run, start.attempt, ranks, asked_to_stop, show=show)


def _run_beside_ray(start: Start, meeting: Meeting, ray: RayHere) -> list[RankExit]:
    """The ranks as ever: Ray shows them, and they can do without it."""
    with shown_by_ray(start.run.id, ray.environment) as show:
        ranks = _ranks(start, meeting, ray.environment)
        exits = _run(start, ranks, start.asked_to_stop, show)
    if ray.daemon.ended:
        log.warning("Ray ended before the ranks: %s", ray.daemon.last_words())
    return exits


def _run_over_ray(start: Start, meeting: Meeting, ray: RayHere) -> list[RankExit]:
    """One rank, which has the whole cluster, and can do nothing without it."""
    cores = start.cluster.cpus_per_worker * start.cluster.workers_per_node
    own = {**ray.environment, "OMP_NUM_THREADS": str(cores)}
    ranks = replace(_ranks(start, meeting, own), workers=1, nodes=1)

    def asked_to_stop() -> str | None:
        return start.asked_to_stop() or (PEERS if ray.daemon.ended else None)

    exits = _run(start, ranks, asked_to_stop)
    # The rank may see the end of Ray before we do.
    if _is_bad(exits) and ray.ends_within(3.0):
        return [_of_ray(start, ray.failure()), *exits]
    return exits


def _ranks(start: Start, meeting: Meeting, environment: Mapping[str, str]) -> Ranks:
    cluster, node = start.cluster, start.node
    between = interfaces(meeting.address, first=node == 0, chosen=cluster.network_interface)
    return Ranks(
        workers=cluster.workers_per_node,
        environment={**_environment(cluster, start.turn), **between, **environment},
        master_address=meeting.address,
        master_port=meeting.port,
        node=node,
        nodes=start.nodes,
        heartbeat_seconds=cluster.heartbeat_seconds,
        grace_seconds=cluster.grace_seconds,
        hang_seconds=cluster.hang_seconds,
    )


def _account(start: Start, exits: list[RankExit]) -> int:
    """Says how this node's ranks ended; returns the exit code of their parent."""
    if (why := start.asked_to_stop()) in (DELETED, FENCED):
        return 6 if why == FENCED else 0
    bad = _is_bad(exits)
    said = partial(write_exits, start.run, start.attempt, start.node, exits, bad=bad)
    insist(said, seconds=60.0)
    return int(bad)


def _is_bad(exits: list[RankExit]) -> bool:
    return any(one.code not in (0, REQUEUE) for one in exits)


def _of_ray(start: Start, failed: RayFailed) -> RankExit:
    """The end of Ray, for the account of this node: in the place of its first rank."""
    first = start.node * start.cluster.workers_per_node
    return RankExit(first, 1, failed.failure, failed.what)


def _seat(start: Start, hosts: list[str]) -> Seat:
    return Seat(
        start.run,
        start.attempt,
        start.turn.launch,
        start.node,
        hosts,
        start.cluster,
        start.asked_to_stop,
    )


def _await_meeting(run: Run, turn: Turn, requests: Requests) -> tuple[int, Meeting]:
    """srun ends this node's task where node 0 fails, so the wait may be as long as it likes."""
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        if requests.terminating:
            raise Stopped("stopped while node 0 was starting")
        newest = insist(partial(attempt_numbers, run.record), _STORE_SECONDS)[-1:]
        for attempt in newest:
            try:
                said = insist(partial(read_json, run.record, meeting_key(attempt)), _STORE_SECONDS)
            except NotFound:
                continue
            meeting = Meeting(**said)
            if meeting.launch == turn.launch:
                return attempt, meeting
        time.sleep(0.2)
    raise IgptError(f"node 0 of job {turn.launch} has not begun within {MEETING_SECONDS:.0f} s")


def _environment(cluster: SlurmCluster, turn: Turn) -> dict[str, str]:
    return {
        "IGPT_LAUNCH": turn.launch,
        "OMP_NUM_THREADS": str(cluster.cpus_per_worker),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def _own_address() -> str:
    """This node's address as the other nodes reach it: where srun itself takes its reports."""
    return os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostbyname(socket.gethostname())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
