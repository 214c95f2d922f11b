"""Why an attempt ended, and what happens next. Pure: the supervisors of all backends ask here."""

import signal
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
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


#: Exit codes that tell a class, for a rank that could not say more.
_CODES: Mapping[int, FailureClass] = {2: FailureClass.USER_ERROR, 3: FailureClass.STORAGE}


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
    failure: FailureClass | None = None  # what the worker itself said; None: a consequence, or mute
    reason: str = ""
    torn_down: bool = False  # killed by its parent, after another rank had ended or time was up


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended: finished, stopped (asked to), superseded, or failed with a class."""

    outcome: str
    failure: FailureClass | None = None
    reason: str = ""
    late: bool = False  # nothing was wrong: asked to stop, its ranks were killed before they had


def classify(exits: Iterable[RankExit]) -> Verdict:
    """The verdict over an attempt from its ranks' exits, in the order in which they happened.

    A rank that named a class of its own is the cause, a user's error before all others, as it must
    not be tried again; then one that was killed from outside (its peers only saw it go), then an
    exception that has no class, then any other. What we tore down ourselves is a consequence; so
    are a TERM, which a scheduler sends to all ranks when one has ended, and an ABRT beside a rank
    that named its failure: libraries abort where a peer is gone.
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
    harmless = {signal.SIGTERM}
    if any(_named(one) for one in of_themselves):
        harmless.add(signal.SIGABRT)
    cause = min(of_themselves, key=lambda one: _weight(one, harmless))  # of equals the first
    if cause.failure is FailureClass.HANG:  # each node says what it saw
        seen = [one.reason for one in bad if one.failure is FailureClass.HANG and one.reason]
        return Verdict("failed", cause.failure, "; ".join(dict.fromkeys(seen)))
    late = cause.torn_down and cause.failure is None
    return Verdict("failed", cause.failure or _by_code(cause.code), _reason(cause), late)


def may_retry(failure: FailureClass, history: Iterable[FailureClass], budget: RetryBudget) -> bool:
    """Whether the class, which has just happened, is within its budget; `history` includes it."""
    allowed = budget.of(failure)
    return allowed is None or Counter(history)[failure] <= allowed


def _weight(one: RankExit, harmless: Collection[int]) -> int:
    """How little the end of a rank explains the others'."""
    named = _named(one)
    if named is FailureClass.USER_ERROR:
        return 0
    if named not in (None, FailureClass.CRASH):
        return 1
    if one.code < 0 and -one.code not in harmless:
        return 2
    return 3 if named else 4


def _named(one: RankExit) -> FailureClass | None:
    """The class of a rank's failure by its own word or, where it could say none, by its code."""
    return one.failure or _CODES.get(one.code)


def _by_code(code: int) -> FailureClass:
    return FailureClass.NODE if code < 0 else _CODES.get(code, FailureClass.CRASH)


def _reason(cause: RankExit) -> str:
    if cause.code < 0 and cause.reason:
        return cause.reason
    if cause.torn_down:
        return f"rank {cause.rank} did not stop within its grace and was killed"
    if cause.code < 0:
        return f"rank {cause.rank} was killed by signal {-cause.code}"
    return cause.reason or f"rank {cause.rank} ended with exit code {cause.code}"
