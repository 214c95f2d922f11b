"""The one worker entry. A backend makes N processes call `main(run_uri, attempt)`; nothing else.

Rank 0 claims the attempt by an exclusive create and with it fixes the checkpoint to start from; the
others wait for the claim of their own launch. Then the job's entry runs, and rank 0 writes
`result.json`, once. The exit code says how it ended: 0 finished, 75 stopped as asked and to be
started again, else the code of the error's class (igpt.errors).

Known from the environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, as torch has
them; IGPT_LAUNCH, a random word of this launch; IGPT_SCRATCH, a folder shared with the parent;
IGPT_PARENT, its process id; IGPT_GRACE, seconds for a last checkpoint; IGPT_EXCHANGE, seconds to
wait for a peer; IGPT_MOST_WORKERS, how many ranks there may be in a later attempt; IGPT_CODE, the
folder of the code that is to run.
"""

import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from igpt.config import load
from igpt.errors import (
    IgptError,
    NotFound,
    Superseded,
    Unreachable,
    UserError,
)
from igpt.jobs import stacks
from igpt.jobs.base import find_job
from igpt.jobs.context import EXCHANGE_SECONDS, Context, RunSink, Stopped, write_beside
from igpt.jobs.explaining import explain
from igpt.jobs.process import StopFlag, end_with_parent, leave
from igpt.jobs.references import newest_checkpoint
from igpt.jobs.waiting import settle_inputs
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, claim, read_claim, superseded
from igpt.runs.failures import REQUEUE
from igpt.runs.record import run_at
from igpt.runs.shipped import insist_on_code
from igpt.storage.patience import insist

log = logging.getLogger("igpt")

#: How long a rank waits for rank 0 to claim the attempt.
CLAIM_SECONDS = 600.0


def main(run_uri: str, attempt: int) -> int:
    """Works on one attempt of a run as one rank; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop = StopFlag(float(os.environ.get("IGPT_GRACE", "inf")))
    stop.install()
    stacks.install()
    end_with_parent()
    rank = int(os.environ.get("RANK", "0"))
    scratch = Path(os.environ["IGPT_SCRATCH"]) if "IGPT_SCRATCH" in os.environ else None
    try:
        _work(run_uri, attempt, rank, stop, scratch)
        return 0
    except Stopped as stopped:
        log.info("%s", stopped)
        return REQUEUE
    except Exception as error:
        code, failure, reason = explain(error)
        if isinstance(error, IgptError):
            log.error("%s", reason)
        else:
            traceback.print_exception(error)  # a bug, or the machine's; its place helps
        if scratch is not None:
            said = {"class": failure.value if failure else None, "reason": reason}
            try:
                write_beside(scratch / f"failure-{rank}.json", said)
            except OSError as full:  # the code alone has to tell it
                log.error("%s", full)
        return code


def _work(run_uri: str, attempt: int, rank: int, stop: StopFlag, scratch: Path | None) -> None:
    run = run_at(run_uri)
    insist_on_code(run.root)  # the folder may have gone since our parent was started from it
    job = find_job(run.spec().job)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if rank == 0:
        # A run that may grow has to fit the inputs then, too.
        settle_inputs(run, job, max(world_size, int(os.environ.get("IGPT_MOST_WORKERS", "1"))))
    owned = _claim(run, attempt, world_size) if rank == 0 else _await_claim(run, attempt)
    spec = run.spec()
    config = load(job.config, json.dumps(spec.config), f"{run_uri}/spec.yaml, config")
    context = Context(
        run=run,
        claim=owned,
        rank=rank,
        world_size=world_size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        stop=stop,
        sink=RunSink(run, attempt, scratch, rank),
        time_left=stop.time_left,
        exchange_seconds=float(os.environ.get("IGPT_EXCHANGE", EXCHANGE_SECONDS)),
    )
    result = job.load_entry()(config, context)
    if rank == 0:
        _insist(context.sink.flush, context)
        _insist(lambda: _finish(run, attempt, result), context)


def _claim(run: Run, attempt: int, workers: int) -> Claim:
    if run.record.exists("result.json"):
        # Its worker may have been killed before it could say so.
        run.event(ev.FINISHED, writer="worker", attempt=attempt)
        raise Superseded(f"run {run.id} has finished already")
    limit = _from_step(run, attempt)
    best = newest_checkpoint(run, at_most=limit)
    if limit and best is None:  # 0 alone means the beginning
        raise UserError(
            f"run {run.id} has no checkpoint at or before step {limit} any more",
            mend=f"igpt-jobs resume {run.id} without --from goes on from its last one",
        )
    wanted = Claim(
        attempt=attempt,
        launch=os.environ.get("IGPT_LAUNCH", "alone"),
        host=platform.node(),
        workers=workers,
        time=time.time(),
        start_step=best[0] if best else 0,
        start_attempt=best[1] if best else None,
    )
    if not claim(run.record, wanted):
        raise Superseded(f"attempt {attempt} of run {run.id} is another process's")
    run.event(
        ev.STARTED,
        writer="worker",
        attempt=attempt,
        workers=workers,
        start_step=wanted.start_step,
        host=wanted.host,
    )
    return wanted


def _from_step(run: Run, attempt: int) -> int | None:
    """The step that the user went back to, until an attempt has claimed the run since."""
    asked = [one for one in run.events({ev.SUBMITTED}) if (one.attempt or 0) <= attempt]
    if not asked:
        return None
    # Attempts that ended before their claim may lie between: what was asked for still stands.
    last = sorted(asked, key=lambda one: one.attempt or 0)[-1]
    if any(owned.attempt >= (last.attempt or 0) for owned in run.claims()):
        return None
    step: int | None = last.fields.get("from_step")
    return step


def _await_claim(run: Run, attempt: int) -> Claim:
    """Rank 0's claim of this very launch."""
    deadline = time.monotonic() + CLAIM_SECONDS
    while time.monotonic() < deadline:
        try:
            found = read_claim(run.record, attempt)
        except NotFound:
            time.sleep(0.1)
            continue
        if found.launch != os.environ.get("IGPT_LAUNCH", "alone"):
            raise Superseded(f"attempt {attempt} of run {run.id} is another launch's")
        return found
    raise Unreachable(f"rank 0 has not claimed attempt {attempt} within {CLAIM_SECONDS:.0f} s")


def _finish(run: Run, attempt: int, result: dict[str, object]) -> None:
    """The one result. A newer attempt's claim forbids it."""
    overtaken = Superseded(f"a newer attempt of run {run.id} owns it")
    if superseded(run.record, attempt):
        raise overtaken
    body = {"status": "finished", "attempt": attempt, "time": time.time(), **result}
    created = run.record.create("result.json", json.dumps(body, indent=1).encode())
    if superseded(run.record, attempt):
        # It came between the question and the result, without having seen one: it works on.
        if created:
            run.record.delete(["result.json"])
        raise overtaken
    run.event(ev.FINISHED, writer="worker", attempt=attempt)


def _insist(action: Callable[[], None], context: Context) -> None:
    """Does it as soon as the store is there: what the work has come to is not lost to an outage."""

    def away(error: Unreachable) -> None:
        log.warning("the work is done, and waits for the store: %s", error)
        context.sink.alive()

    insist(action, full=False, time_left=context.time_left, away=away)


if __name__ == "__main__":
    ended = 1
    try:
        ended = main(sys.argv[1], int(sys.argv[2]))
    except BaseException as error:  # an interrupt, or a mistake in what is around the work
        traceback.print_exception(error)
    leave(ended)
