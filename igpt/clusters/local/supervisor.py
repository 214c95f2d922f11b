"""The supervisor of one run on a local cluster: waits its turn, starts attempts, decides what next.

    python -m igpt.clusters.local.supervisor RUN_URI ATTEMPT

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
import sys
import time
from functools import partial

from igpt.clusters.attempts import wait_for_others, work_off
from igpt.clusters.figures import recorded
from igpt.clusters.files import cluster_at
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.local.place import local_key, process_started, state_folder, supervisor_file
from igpt.clusters.local.queue import Ticket, only_one
from igpt.clusters.network import free_port
from igpt.clusters.ranks.requests import Requests
from igpt.clusters.ranks.start import Ranks
from igpt.clusters.ranks.watch import run_ranks
from igpt.errors import IgptError
from igpt.jobs import find_job
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.failures import Verdict, classify
from igpt.runs.record import run_at
from igpt.runs.shipped import insist_on_code
from igpt.storage.patience import insist

log = logging.getLogger("igpt")


def supervise(run: Run, attempt: int, cluster: LocalCluster, requests: Requests) -> None:
    """Brings the run to an end, attempt by attempt, as far as its budgets go."""
    share = cluster.of_job(ray=find_job(insist(run.spec).job).ray)

    def work(number: int) -> Verdict:
        asked = partial(requests.of, number)
        with recorded(cluster.figures, run, number) as show:
            return classify(run_ranks(run, number, _ranks(share), asked, show=show))

    if not wait_for_others(run, attempt, cluster, requests):
        return
    ticket = Ticket(state_folder() / "queue", local_key(run))
    try:
        _wait_for_turn(run, attempt, cluster, ticket, requests)
        work_off(run, attempt, cluster, requests, work)
    finally:
        ticket.release()


def _wait_for_turn(
    run: Run, attempt: int, cluster: LocalCluster, ticket: Ticket, requests: Requests
) -> None:
    beat = 0.0
    while ticket.ahead() >= cluster.max_parallel and not requests.of(attempt):
        if time.monotonic() - beat > cluster.heartbeat_seconds:
            insist(partial(run.beat, attempt, "queued", {}))
            beat = time.monotonic()
        time.sleep(0.1)


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
        master_port=free_port("127.0.0.1"),
        heartbeat_seconds=cluster.heartbeat_seconds,
        grace_seconds=cluster.grace_seconds,
        hang_seconds=cluster.hang_seconds,
    )


def main(run_uri: str, attempt: int) -> int:
    """Supervises a run. The exit code is for people; the record is the truth."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run = run_at(run_uri)
    try:
        insist(partial(insist_on_code, run.root))
    except IgptError as error:
        log.error("%s", error)
        return error.exit_code
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
