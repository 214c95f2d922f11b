"""The supervisor of one run on a local cluster: waits its turn, starts attempts, decides what next.

    python -m igpt.clusters.supervisor RUN_URI ATTEMPT

Detached from the client, and the only one of its attempt on this machine; between machines and
between attempts the claims decide. It records itself first (`launched`), so that the client may die
at any moment. TERM means that the machine is going down: the ranks save and stop, and
`igpt-jobs resume` goes on later. To cancel is a word in the record, so that it works from any
machine; USR1 makes the supervisor look at once.
"""

import logging
import os
import platform
import secrets
import socket
import sys
import time
from functools import partial

from igpt.clusters.files import cluster_at
from igpt.clusters.local import (
    LocalCluster,
    local_key,
    process_started,
    state_folder,
    supervisor_file,
)
from igpt.clusters.node import Ranks, heartbeat, run_ranks
from igpt.clusters.outcome import insist, settle, tell
from igpt.clusters.queue import Ticket, only_one
from igpt.clusters.requests import Requests
from igpt.errors import UserError
from igpt.jobs.waiting import check_can_finish, dependencies, unfinished
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.failures import FailureClass, Verdict, classify
from igpt.runs.record import open_run
from igpt.storage import open_store

log = logging.getLogger("igpt")


def supervise(run: Run, attempt: int, cluster: LocalCluster, requests: Requests) -> None:
    """Brings the run to an end, attempt by attempt, as far as its budgets go."""
    if not _wait_for_others(run, attempt, cluster, requests):
        return
    ticket = Ticket(state_folder() / "queue", local_key(run))
    try:
        _wait_for_turn(run, attempt, cluster, ticket, requests)
        while not (reason := requests.of(attempt)):
            ranks = _ranks(cluster)
            tell(run, attempt, cluster.notify, "started")
            exits = run_ranks(run, attempt, ranks, partial(requests.of, attempt))
            settled = settle(
                run,
                attempt,
                classify(exits),
                cluster.retries,
                cluster.notify,
                final=requests.terminating,
            )
            if not settled.again:
                return
            _pause(settled.pause, requests, attempt)
            attempt = insist(partial(_requeue, run, attempt))
        if reason == "cancelled":
            insist(partial(run.event, ev.CANCELLED, writer="supervisor", attempt=attempt))
    finally:
        ticket.release()


def _wait_for_turn(
    run: Run, attempt: int, cluster: LocalCluster, ticket: Ticket, requests: Requests
) -> None:
    beat = 0.0
    while ticket.ahead() >= cluster.max_parallel and not requests.of(attempt):
        if time.monotonic() - beat > cluster.heartbeat_seconds:
            insist(partial(heartbeat, run, attempt, "queued", {}))
            beat = time.monotonic()
        time.sleep(0.1)


def _wait_for_others(run: Run, attempt: int, cluster: LocalCluster, requests: Requests) -> bool:
    """Waits for the runs that have to finish first, outside the queue: one may have to enter it.

    Returns False where there is nothing to start any more.
    """
    before = insist(partial(dependencies, run))
    while waiting := [other for other in before if insist(partial(unfinished, other))]:
        if reason := requests.of(attempt):
            if reason == "cancelled":
                insist(partial(run.event, ev.CANCELLED, writer="supervisor", attempt=attempt))
            return False
        try:
            insist(partial(check_can_finish, waiting))
        except UserError as error:
            verdict = Verdict("failed", FailureClass.USER_ERROR, str(error))
            settle(run, attempt, verdict, cluster.retries, cluster.notify)
            return False
        insist(partial(heartbeat, run, attempt, "queued", {}))
        _pause(cluster.heartbeat_seconds, requests, attempt)
    return True


def _requeue(run: Run, attempt: int) -> int:
    """Makes the next attempt ready; returns its number."""
    following = max(attempt_numbers(run.record)) + 1
    copied = run.record.get(f"attempts/{attempt:04d}/cluster.yaml")
    run.record.put(f"attempts/{following:04d}/cluster.yaml", copied)
    run.event(ev.REQUEUED, writer="supervisor", attempt=following)
    return following


def _pause(seconds: float, requests: Requests, attempt: int) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not requests.of(attempt):
        time.sleep(0.05)


def _ranks(cluster: LocalCluster) -> Ranks:
    threads = str(cluster.threads_per_worker())
    environment = {"IGPT_LAUNCH": secrets.token_hex(8), "OMP_NUM_THREADS": threads}
    # Threads that wait by spinning take the cores from whoever else is on the machine, and from
    # each other: beside one other job a step took ten times as long.
    environment |= {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    if sys.platform == "linux":
        # All ranks are on this machine; its own name need not resolve.
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return Ranks(
        workers=cluster.workers,
        environment=environment,
        master_port=_free_port(),
        heartbeat_seconds=cluster.heartbeat_seconds,
        grace_seconds=cluster.grace_seconds,
        hang_seconds=cluster.hang_seconds,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(run_uri: str, attempt: int) -> int:
    """Supervises a run. The exit code is for people; the record is the truth."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    root_uri, _, identifier = run_uri.rpartition("/runs/")
    run = open_run(open_store(root_uri), identifier)
    with only_one(supervisor_file(run, attempt, "lock")) as mine:
        if not mine:
            log.error("another supervisor is at work on attempt %d of run %s", attempt, run.id)
            return 6
        cluster = cluster_at(run, attempt)
        assert isinstance(cluster, LocalCluster)
        # Its handlers first: who sees the launch may send a signal at once.
        requests = Requests(run, cluster.heartbeat_seconds)
        run.event(
            ev.LAUNCHED,
            writer="supervisor",
            attempt=attempt,
            host=platform.node(),
            pid=os.getpid(),
            started=process_started(os.getpid()),
        )
        supervise(run, attempt, cluster, requests)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
