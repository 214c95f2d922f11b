"""What keeps a job that gets nowhere from being started again for ever.

The budgets of retries do not: to be stopped is no failure, and where the nodes cannot reach the
store they cannot reach the record either, in which failures are counted.
"""

import logging
from contextlib import suppress
from pathlib import Path

from igpt.jobs.references import newest_checkpoint
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.failures import REQUEUE, RetryBudget
from igpt.storage import open_store

log = logging.getLogger("igpt")

#: So many attempts in a row that save nothing new, and there never will be anything: of those that
#: the time limit ends, and of those that are stopped otherwise.
FRUITLESS_LIMITS, FRUITLESS_STOPS = 3, 10
#: So often is a job requeued that could not reach the store; the cluster file is in there.
STARTS_WITHOUT_STORE = RetryBudget().storage


def fruitless(run: Run, attempt: int, allowed: int) -> bool:
    """Whether so many attempts in a row, this one the last, have saved nothing new.

    New is a checkpoint beyond the one that they started from, or a piece more than there were
    before them (`Context.keeps_pieces`). Those that were stopped before their claim saved nothing.
    """
    submitted = max((event.attempt or 0 for event in run.events({ev.SUBMITTED})), default=0)
    claims = [claim for claim in run.claims() if claim.attempt >= submitted]
    if not claims or claims[-1].attempt != attempt:
        since = claims[-1].attempt + 1 if claims else submitted
        stopped = {event.attempt for event in run.events({ev.PREEMPTED})} | {attempt}
        return sum((one or 0) >= since for one in stopped) >= allowed
    best = newest_checkpoint(run)
    start = claims[-1].start_step
    latest = claims[-allowed:]
    if [claim.start_step for claim in latest] != [start] * allowed or (best and best[0] > start):
        return False
    return not _more_pieces(run, latest[0].attempt)


def _more_pieces(run: Run, since: int) -> bool:
    """Whether a place for pieces holds more than before one of the attempts from `since` on."""
    before: dict[str, int] = {}
    for event in run.events({ev.PIECES}):
        if (event.attempt or 0) >= since:
            place, there = str(event.fields["place"]), int(event.fields["there"])
            before[place] = min(there, before.get(place, there))
    return any(len(open_store(place).objects()) > there for place, there in before.items())


def ended_without_store(folder: Path, job: str) -> int:
    """Counts a start of the job that ended without the store; returns the job's exit code.

    folder: the run's, shared by the nodes, where the count is kept until the store is back.
    """
    count = folder / f"{job}_without_store"
    try:
        ends = (int(count.read_text()) if count.exists() else 0) + 1
        count.write_text(str(ends))
    except (OSError, ValueError) as error:  # what cannot be counted must not go on
        log.error("job %s is not started again: %s: %s", job, count, error)
        return 3
    if ends <= STARTS_WITHOUT_STORE:
        log.error(
            "the store cannot be reached from here; the job is started again, %d of %d times",
            ends,
            STARTS_WITHOUT_STORE,
        )
        return REQUEUE
    log.error(
        "the store cannot be reached from here, in %d starts in a row: the job is not started "
        "again. igpt-jobs doctor --cluster FILE shows what the nodes reach; igpt-jobs resume goes "
        "on from what is saved",
        ends,
    )
    return 3


def store_is_back(folder: Path, job: str) -> None:
    """Forgets the starts that ended without the store."""
    with suppress(OSError):
        (folder / f"{job}_without_store").unlink(missing_ok=True)
