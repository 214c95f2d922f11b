"""Why an attempt ended, and what happens next. Pure: the supervisors of all backends ask here."""

import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field

from igpt.config import Strict

#: Exit code of a worker that stopped when asked, after its checkpoint: start me again.
#: (EX_TEMPFAIL of sysexits.h.) The others are those of `igpt.errors`.
REQUEUE = 75


class FailureClass(StrEnum):
    """The classes of failure, each with its own budget of retries."""

    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    NODE = "node"
    OUT_OF_MEMORY = "out-of-memory"
    HANG = "hang"
    STORAGE = "storage"
    CORRUPT = "corrupt"
    CRASH = "crash"
    USER_ERROR = "user-error"


class RetryBudget(Strict):
    """How often each class is tried again, counted since the run was last submitted or resumed."""

    node: int = Field(default=5, ge=0, description="a rank killed by a signal, or a lost machine")
    out_of_memory: int = Field(default=1, ge=0, description="a worker ran out of memory")
    hang: int = Field(default=2, ge=0, description="no step for hang_seconds")
    storage: int = Field(default=5, ge=0, description="the store was away or full")
    crash: int = Field(default=1, ge=0, description="an exception in a worker")

    def of(self, failure: FailureClass) -> int | None:
        """The budget of a class; None is without limit. What cannot pass is never retried."""
        if failure in (FailureClass.USER_ERROR, FailureClass.CORRUPT):
            return 0  # the same again would end the same
        if failure in (FailureClass.PREEMPTED, FailureClass.TIMEOUT):
            return None  # the work is saved, and goes on from there
        value: int = getattr(self, failure.value.replace("-", "_"))
        return value


@dataclass(frozen=True)
class RankExit:
    """How one rank's process ended. `code` is negative for a signal, as in subprocess."""

    rank: int
    code: int
    failure: FailureClass | None = None  # what the worker itself said, where it could
    reason: str = ""
    torn_down: bool = False  # killed by its parent, after another rank had ended or time was up


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended: finished, stopped (asked to), superseded, or failed with a class."""

    outcome: str
    failure: FailureClass | None = None
    reason: str = ""


def classify(exits: Iterable[RankExit]) -> Verdict:
    """The verdict over an attempt from its ranks' exits, in the order in which they happened.

    A rank that was killed from outside is the cause, before one that named its failure (its peers
    only saw it go), before any other. What we tore down ourselves is a consequence; so is a TERM,
    which a scheduler sends to all ranks when one has ended.
    """
    ended = list(exits)
    if all(one.code == 0 for one in ended):
        return Verdict("finished")
    if any(one.code == 6 for one in ended):
        return Verdict("superseded", reason="a newer attempt owns the run")
    bad = [one for one in ended if one.code not in (0, REQUEUE)]
    if not bad:
        return Verdict("stopped", FailureClass.PREEMPTED, "asked to stop; checkpoint committed")
    of_themselves = [one for one in bad if not one.torn_down] or bad
    killed = (one for one in of_themselves if one.code < 0 and one.code != -signal.SIGTERM)
    cause = next(killed, None) or next(
        (one for one in of_themselves if one.failure), of_themselves[0]
    )
    if cause.failure is FailureClass.HANG:  # each node says what it saw
        seen = [one.reason for one in bad if one.failure is FailureClass.HANG and one.reason]
        return Verdict("failed", cause.failure, "; ".join(dict.fromkeys(seen)))
    return Verdict("failed", cause.failure or _by_code(cause.code), _reason(cause))


def may_retry(failure: FailureClass, history: Iterable[FailureClass], budget: RetryBudget) -> bool:
    """Whether the class, which has just happened, is within its budget; `history` includes it."""
    allowed = budget.of(failure)
    return allowed is None or Counter(history)[failure] <= allowed


def _by_code(code: int) -> FailureClass:
    known: Mapping[int, FailureClass] = {2: FailureClass.USER_ERROR, 3: FailureClass.STORAGE}
    return FailureClass.NODE if code < 0 else known.get(code, FailureClass.CRASH)


def _reason(cause: RankExit) -> str:
    if cause.code < 0 and cause.reason:
        return cause.reason
    if cause.torn_down:
        return f"rank {cause.rank} did not stop within its grace and was killed"
    if cause.code < 0:
        return f"rank {cause.rank} was killed by signal {-cause.code}"
    return cause.reason or f"rank {cause.rank} ended with exit code {cause.code}"
