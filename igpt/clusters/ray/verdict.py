"""How an attempt on Ray ended: by what the ranks' parents said, and by what Ray saw of them."""

from functools import partial

import ray.exceptions
from ray.train.v2.api.exceptions import WorkerGroupError

from igpt.clusters.ranks.exits import read_exits
from igpt.clusters.ray.rank import read_meeting
from igpt.clusters.ray.watch import DRAINED
from igpt.errors import NotFound
from igpt.jobs.explaining import explain
from igpt.runs import Run
from igpt.runs.failures import FailureClass, RankExit, Verdict, classify
from igpt.storage.patience import insist

#: In the words of Ray's errors.
_NO_ROOM = "WorkerGroupStartupTimeout"
_NO_MEMORY = ("OutOfMemory", "memory pressure")


def verdict_of(run: Run, attempt: int, error: Exception | None, asked: str | None) -> Verdict:
    """The verdict over an attempt.

    error: with which `fit` ended. asked: why we asked the ranks to stop.
    """
    if insist(partial(run.record.exists, "result.json")):
        return Verdict("finished")
    try:
        world_size = len(insist(partial(read_meeting, run, attempt)).places)
    except NotFound:
        return _never_began(error, asked)
    said = [insist(partial(read_exits, run, attempt, rank)) for rank in range(world_size)]
    exits: list[RankExit] = [one for own in said for one in own or ()]
    causes = dict(error.worker_failures) if isinstance(error, WorkerGroupError) else {}
    missing = [rank for rank, own in enumerate(said) if own is None]
    if missing:
        # What the others saw of a lost peer is a consequence; what they said of themselves is not.
        told = [
            one
            for one in exits
            if one.failure not in (None, FailureClass.CRASH) and not one.torn_down
        ]
        if not told:
            return _lost(missing, causes, asked)
    verdict = classify(exits)
    if verdict.outcome == "stopped" and asked is not None:
        return Verdict("stopped", FailureClass.PREEMPTED, f"{asked}; saved")
    return verdict


def last_line(error: Exception) -> str:
    """What an error of Ray's comes down to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _never_began(error: Exception | None, asked: str | None) -> Verdict:
    if error is None:
        return Verdict("stopped", FailureClass.PREEMPTED, asked or "stopped before it began")
    if _NO_ROOM in f"{type(error).__name__} {error!r} {error}":
        return Verdict("stopped", FailureClass.PREEMPTED, "another took the room meanwhile")
    if isinstance(error, WorkerGroupError):
        return _lost(list(error.worker_failures), dict(error.worker_failures), asked)
    reason = f"Ray could not start the workers: {last_line(error)}"
    return Verdict("failed", FailureClass.CRASH, reason)


def _lost(missing: list[int], causes: dict[int, Exception], asked: str | None) -> Verdict:
    """The verdict over workers of Ray that went without a word: with their nodes, or alone."""
    if asked is not None and asked.endswith(DRAINED):
        reason = f"{asked}, and was gone before all had saved"
        return Verdict("stopped", FailureClass.PREEMPTED, reason)
    for rank in missing:
        if rank not in causes:
            continue
        cause = causes[rank]
        reason = f"the worker of rank {rank}: {last_line(cause)}"
        own = _raised(cause)
        if own is not None:  # by our own code around the rank
            _, failure, line = explain(own)
            failure = failure or FailureClass.CRASH
            return Verdict("failed", failure, f"the worker of rank {rank}: {line}")
        memory = any(word in str(cause) for word in _NO_MEMORY)
        return Verdict(
            "failed", FailureClass.OUT_OF_MEMORY if memory else FailureClass.NODE, reason
        )
    ranks = ", ".join(map(str, missing))
    return Verdict("failed", FailureClass.NODE, f"the worker of rank {ranks} gave no account")


def _raised(cause: Exception) -> Exception | None:
    """The exception of our train function; None where Ray lost the worker."""
    if isinstance(cause, ray.exceptions.RayActorError | ray.exceptions.RaySystemError):
        return None
    if type(cause).__module__.startswith("ray.") and not hasattr(cause, "_base_exc"):
        return None  # a health check of Ray Train's, and the like
    inner = getattr(cause, "_base_exc", cause)
    return inner if isinstance(inner, Exception) else None
