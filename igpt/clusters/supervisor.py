"""The supervisor of one run on a local cluster: waits its turn, starts attempts, decides what next.

    python -m igpt.clusters.supervisor RUN_URI ATTEMPT

Detached from the client, and the only one of its attempt on this machine; between machines and
between attempts the claims decide. It records itself first (`launched`), so that the client may die
at any moment. TERM means that the machine is going down: the ranks save and stop, and
`igpt-jobs resume` goes on later. To cancel is a word in the record, so that it works from any
machine; USR1 makes the supervisor look at once.
"""

import logging
import math
import os
import platform
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from igpt.clusters.files import parse_cluster
from igpt.clusters.local import (
    LocalCluster,
    local_key,
    process_started,
    state_folder,
    supervisor_file,
)
from igpt.clusters.node import DELETED, Ranks, heartbeat, run_ranks
from igpt.clusters.queue import Ticket, only_one
from igpt.config import read_yaml
from igpt.errors import IgptError, Unreachable
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers, superseded
from igpt.runs.failures import FailureClass, Verdict, classify, may_retry
from igpt.runs.record import open_run
from igpt.runs.state import cancel_requested, failures_since_launch
from igpt.storage import open_store

log = logging.getLogger("igpt")


#: A store that is away for this long ends the supervisor, and the run stalls.
PATIENCE_SECONDS = 3600.0

T = TypeVar("T")


def insist(action: Callable[[], T]) -> T:
    """What the action returns, as soon as the store can be reached again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = 0.5
    while True:
        try:
            return action()
        except Unreachable as error:
            if time.monotonic() > deadline:
                raise
            log.warning("%s", error)
            time.sleep(pause)
            pause = min(30.0, 2 * pause)


class Requests:
    """What was asked of the supervisor: by signal at once, by the record every few seconds."""

    def __init__(self, run: Run, seconds: float) -> None:
        self._run = run
        self._seconds = seconds
        self._looked = -math.inf  # the first look is at once: much may have been asked before us
        self._woken = False
        self._fenced: int | None = None
        self._deleted = False
        self.terminating = False
        self.cancelling = False
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, self._terminate)
        signal.signal(signal.SIGUSR1, self._wake)

    def of(self, attempt: int) -> str | None:
        """Why the attempt should stop, if it should."""
        if time.monotonic() - self._looked > self._seconds or self._woken:
            self._looked, self._woken = time.monotonic(), False
            try:
                self.cancelling = cancel_requested(self._run.events(ev.LIFE))
                self._deleted = not self._run.record.exists("spec.yaml")
                if superseded(self._run.record, attempt):
                    self._fenced = attempt
            except IgptError as error:
                log.warning("%s", error)
        if self._deleted:
            return DELETED
        if self._fenced == attempt:
            return "a newer attempt owns the run"
        if self.cancelling:
            return "cancelled"
        return "terminating" if self.terminating else None

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminating = True

    def _wake(self, number: int, frame: FrameType | None) -> None:
        self._woken = True


def supervise(run: Run, attempt: int, cluster: LocalCluster, requests: Requests) -> None:
    """Brings the run to an end, attempt by attempt, as far as its budgets go."""
    ticket = Ticket(state_folder() / "queue", local_key(run))
    try:
        _wait_for_turn(run, attempt, cluster, ticket, requests)
        while not (reason := requests.of(attempt)):
            ranks = _ranks(cluster)
            exits = run_ranks(run, attempt, ranks, partial(requests.of, attempt))
            following = _settle(run, attempt, cluster, classify(exits), requests)
            if following is None:
                return
            attempt = following
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


def _settle(
    run: Run, attempt: int, cluster: LocalCluster, verdict: Verdict, requests: Requests
) -> int | None:
    """Records how an attempt ended; returns the number of the next one, if there is to be one."""
    log.info("attempt %d: %s %s", attempt, verdict.outcome, verdict.reason)

    def note(kind: str, **fields: Any) -> None:
        record = partial(run.event, kind, writer="supervisor", attempt=attempt)
        insist(partial(record, reason=verdict.reason, **fields))

    if verdict.outcome == "finished" or not insist(partial(run.record.exists, "spec.yaml")):
        return None
    # Before all else: whatever became of it, an attempt that a newer one has overtaken is over.
    if verdict.outcome == "superseded" or insist(partial(superseded, run.record, attempt)):
        note(ev.SUPERSEDED)
        return None
    if insist(partial(_is_cancelled, run)):
        note(ev.CANCELLED)
        return None
    if verdict.outcome == "stopped":
        note(ev.PREEMPTED)
        if requests.terminating:
            return None
        _pause(1.0, requests, attempt)
    else:
        failure = verdict.failure or FailureClass.CRASH
        before = failures_since_launch(insist(partial(run.events, ev.LIFE)))
        history = [FailureClass(one) for one in before] + [failure]
        retry = may_retry(failure, history, cluster.retries) and not requests.terminating
        note(ev.FAILED, **{"class": failure.value, "final": not retry})
        if not retry:
            return None
        _pause(min(30.0, 0.25 * 2 ** history.count(failure)), requests, attempt)
    return insist(partial(_requeue, run, attempt))


def _is_cancelled(run: Run) -> bool:
    return cancel_requested(run.events(ev.LIFE))


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
        text = run.record.get(f"attempts/{attempt:04d}/cluster.yaml").decode()
        cluster = parse_cluster(read_yaml(text, f"{run_uri}/attempts/{attempt:04d}/cluster.yaml"))
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
