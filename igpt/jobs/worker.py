"""The one worker entry. A backend makes N processes call `main(run_uri, attempt)`; nothing else.

Rank 0 claims the attempt by an exclusive create and with it fixes the checkpoint to start from; the
others wait for the claim of their own launch. Then the job's entry runs, and rank 0 writes
`result.json`, once. The exit code says how it ended: 0 finished, 75 stopped as asked and to be
started again, else the code of the error's class (igpt.errors).

Known from the environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, as torch has
them; IGPT_LAUNCH, a random word of this launch; IGPT_SCRATCH, a folder shared with the parent;
IGPT_PARENT, its process id; IGPT_GRACE, seconds for a last checkpoint; IGPT_MOST_WORKERS, how many
ranks there may be in a later attempt; IGPT_CODE, the folder of the code that is to run.
"""

import atexit
import ctypes
import errno
import json
import logging
import math
import os
import platform
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from igpt.config import load
from igpt.errors import (
    DataCorrupt,
    IgptError,
    NotFound,
    PeerFailed,
    Superseded,
    Unreachable,
    UserError,
)
from igpt.jobs import stacks
from igpt.jobs.base import find_job
from igpt.jobs.context import Context, RunSink, Stopped, write_beside
from igpt.jobs.references import newest_checkpoint
from igpt.jobs.waiting import settle_inputs
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import Claim, claim, read_claim, superseded
from igpt.runs.failures import REQUEUE, FailureClass
from igpt.runs.record import run_at
from igpt.runs.shipped import insist_on_code
from igpt.storage.patience import Patience

log = logging.getLogger("igpt")

#: How gloo, NCCL and torch's store speak of a rank that has gone, in RuntimeErrors (torch 2.13).
_OF_A_PEER = re.compile(
    r"gloo/transport|(closed|reset) by peer|ncclRemoteError|remote process exit"
    r"|communicator was aborted|collective operation timeout|remote server shutdown",
    re.IGNORECASE,
)

#: How long a rank waits for rank 0 to claim the attempt.
CLAIM_SECONDS = 120.0


class StopFlag:
    """Set by USR2 or TERM, read by the loop. The handler does nothing else.

    grace: seconds from then on until whoever asked kills this process.
    """

    def __init__(self, grace: float = math.inf) -> None:
        self.set = False
        self._grace = grace
        self._asked: float | None = None

    def __call__(self) -> bool:
        return self.set

    def time_left(self) -> float:
        """Seconds until this process is killed; without limit where it was not asked to stop."""
        return math.inf if self._asked is None else self._asked + self._grace - time.monotonic()

    def install(self) -> None:
        """Takes the signals that may come to a rank."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGUSR2, self._handle)
        # Meant for our parent; Slurm sends it to every process of a job.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.set = True
        self._asked = self._asked or time.monotonic()
        if _is_orphan():
            # Nobody is left who would kill it when its grace is over, wherever it may be stuck.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, float(os.environ.get("IGPT_GRACE", "120")))


def main(run_uri: str, attempt: int) -> int:
    """Works on one attempt of a run as one rank; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop = StopFlag(float(os.environ.get("IGPT_GRACE", "inf")))
    stop.install()
    stacks.install()
    _end_with_parent()
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


def explain(error: Exception) -> tuple[int, FailureClass | None, str]:
    """Exit code, class and one line for what ended the worker.

    The class is None where the cause is not here: a newer attempt, or a peer that has gone.
    """
    if isinstance(error, Superseded):
        return 6, None, str(error)
    if isinstance(error, Unreachable):
        return 3, FailureClass.STORAGE, str(error)
    if isinstance(error, DataCorrupt):
        return 1, FailureClass.CORRUPT, str(error)
    if isinstance(error, UserError | NotFound):
        return 2, FailureClass.USER_ERROR, str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 3, FailureClass.STORAGE, f"no space left: {error}"
    reason = str(error) if isinstance(error, IgptError) else f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 1, FailureClass.OUT_OF_MEMORY, reason
    if isinstance(error, PeerFailed) or (
        isinstance(error, RuntimeError) and _OF_A_PEER.search(str(error))
    ):
        return 1, None, reason
    return 1, FailureClass.CRASH, reason


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
    patience = Patience()
    while True:
        try:
            return action()
        except Unreachable as error:
            pause = patience.pause(error)
            if context.time_left() < pause:
                raise
            log.warning("the work is done, and waits for the store: %s", error)
            context.sink.alive()
            time.sleep(pause)


def _end_with_parent() -> None:
    """Asks the kernel for TERM when the parent dies, so that no rank trains on unwatched."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if _is_orphan():
            os.kill(os.getpid(), signal.SIGTERM)


def _is_orphan() -> bool:
    """Whether the parent that started this rank is gone."""
    expected = os.environ.get("IGPT_PARENT")
    return bool(expected) and os.getppid() != int(expected or 0)


def leave(code: int) -> NoReturn:
    """Ends the process without taking the interpreter apart.

    While it is taken apart, a thread of torch's may ask for its lock and abort the process, and a
    TERM that comes late ends it by default: in both cases the parent would see a killed rank, whose
    work is done and saved. (Seen with torch 2.13, in one of some twenty ranks that stopped.) So
    would the end of NCCL's group, which waits for peers that may never come.
    """
    try:
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    ended = 1
    try:
        ended = main(sys.argv[1], int(sys.argv[2]))
    except BaseException as error:  # an interrupt, or a mistake in what is around the work
        traceback.print_exception(error)
    leave(ended)
