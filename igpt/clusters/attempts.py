"""Attempt after attempt of one run, as far as its budgets go: what every supervisor of ours does.

A backend says how one attempt is worked on; whoever looks after the run (the local supervisor, the
driver of a Ray job) calls `work_off`. It returns when the run has ended, is to stop for now, or
belongs to another. (On Slurm the scheduler itself starts the next attempt.)
"""

import logging
import time
from collections.abc import Callable
from functools import partial

from igpt.clusters.base import ClusterConfig
from igpt.clusters.files import cluster_key
from igpt.clusters.outcome import settle, tell
from igpt.clusters.ranks.requests import Requests
from igpt.errors import UserError
from igpt.jobs.waiting import check_can_finish, dependencies, unfinished
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.failures import FailureClass, Verdict
from igpt.storage.patience import insist

log = logging.getLogger("igpt")


def work_off(
    run: Run,
    attempt: int,
    cluster: ClusterConfig,
    requests: Requests,
    work: Callable[[int], Verdict],
) -> None:
    """Works on an attempt, and on the next where one is to follow, until the run is at its end.

    work: carries out the attempt of this number to its end, and says how it ended.
    """
    while not (reason := requests.of(attempt)):
        tell(run, attempt, cluster.notify, "started")
        verdict = work(attempt)
        settled = settle(
            run, attempt, verdict, cluster.retries, cluster.notify, final=requests.terminating
        )
        if not settled.again:
            return
        pause(settled.pause, requests, attempt)
        following = insist(partial(requeue, run, attempt))
        if following is None:
            return
        attempt = following
    if reason == "cancelled":
        insist(partial(run.event, ev.CANCELLED, writer="supervisor", attempt=attempt))


def wait_for_others(run: Run, attempt: int, cluster: ClusterConfig, requests: Requests) -> bool:
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
        wanted = f"run {', '.join(other.id for other in waiting)}"
        insist(partial(run.beat, attempt, "queued", {"waiting_for": wanted}))
        pause(cluster.heartbeat_seconds, requests, attempt)
    return True


def requeue(run: Run, attempt: int) -> int | None:
    """Makes the next attempt ready; returns its number, or None where the run is another's now.

    May be called again where the store was away in between.
    """
    following = attempt + 1
    run.record.create(cluster_key(following), run.record.get(cluster_key(attempt)))
    if any((event.attempt or 0) >= following for event in run.events({ev.SUBMITTED})):
        run.event(ev.SUPERSEDED, writer="supervisor", attempt=attempt)  # it was resumed meanwhile
        return None
    run.event(ev.REQUEUED, writer="supervisor", attempt=following)
    return following


def pause(seconds: float, requests: Requests, attempt: int) -> None:
    """Waits, unless something is asked meanwhile."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not requests.of(attempt):
        time.sleep(0.05)
