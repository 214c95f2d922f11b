"""How a run stands: its record, and what its backend sees of it."""

import logging
from dataclasses import replace

from igpt.clusters.base import ClusterConfig
from igpt.clusters.files import cluster_at
from igpt.clusters.kinds import backend_of
from igpt.errors import NotFound, Unreachable, UserError
from igpt.jobs.waiting import check_can_finish
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.record import open_run
from igpt.runs.state import RunState, Sight, Status, cancel_requested

log = logging.getLogger("igpt")


def look(run: Run) -> Sight:
    """What the run's backend sees of its supervisor."""
    cluster = cluster_of(run)
    return backend_of(cluster).look(run) if cluster else Sight()


def status(run: Run) -> Status:
    """How a run stands, by its record and by what its backend knows."""
    now = run.status(sight=look(run))
    if now.state is not RunState.STALLED or run.last_event(ev.STARTED):
        return now
    submitted = run.last_event(ev.SUBMITTED)
    before = submitted.fields.get("after", []) if submitted else []
    try:
        check_can_finish(open_run(run.root, identifier) for identifier in before)
    except UserError as error:  # the scheduler gave it up, and has no better word than cancelled
        return replace(now, reason=error.what, next=error.mend)
    return now


def pursue_cancel(run: Run) -> Status:
    """How a run stands; where it is to be cancelled and waits for its turn, it is cancelled now.

    Between two attempts nobody hears a request: it is heard when the job runs again, which may be
    days later. So whoever looks at such a run takes it out of the queue.
    """
    now = status(run)
    history = run.events(ev.LIFE)
    cluster = cluster_of(run)
    if not now.state.active or cluster is None or not cancel_requested(history):
        return now
    try:
        if look(run).waiting and not backend_of(cluster).cancel(run):
            attempt = max(event.attempt or 0 for event in history)
            run.event(ev.CANCELLED, writer="client", attempt=attempt)
    except Unreachable as error:  # it is still asked for
        log.warning("%s", error)
    return status(run)


def cluster_of(run: Run) -> ClusterConfig | None:
    """The cluster of the newest attempt."""
    for number in reversed(attempt_numbers(run.record)):
        try:
            return cluster_at(run, number)
        except NotFound:
            continue
    return None
