"""The state of a run: a pure function of its record, the clock and what the backend says.

The record comes first, then the backend. A run that should be alive and gives no sign becomes
`stalled`; it is never "running" for ever. What waits in a scheduler's queue need not give any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from igpt.runs import events as ev
from igpt.runs.events import Event

#: A client that wrote its intent has this long to launch before the run counts as an orphan.
LAUNCH_GRACE = 60.0
#: A silent run that its cluster still has goes on by itself within this time, if it does at all: a
#: scheduler finds out about a lost node, and starts the job again.
HELD_SECONDS = 900.0
#: A job that runs gives its first sign of life within this time, whatever its setup has to load.
STARTING_SECONDS = 1800.0


class RunState(StrEnum):
    """Where a run stands."""

    SUBMITTED = "submitted"
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STALLED = "stalled"

    @property
    def active(self) -> bool:
        """Whether something is, or should soon be, working on the run."""
        return self in (RunState.SUBMITTED, RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True)
class Status:
    """A state, why, and what the user can do about it."""

    state: RunState
    reason: str = ""
    next: str = ""
    exit_code: int = 0
    held: bool = False  # stalled, but its cluster has it still

    @property
    def open(self) -> bool:
        """Whether more is to be expected without anybody's doing."""
        return self.state.active or self.held


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of an attempt's parent process."""

    time: float
    phase: str  # queued or running
    host: str
    progress: dict[str, Any]


@dataclass(frozen=True)
class Sight:
    """What a backend sees of the process that looks after a run."""

    alive: bool | None = None  # None where it cannot be known from here
    waiting: bool = False  # alive in the scheduler's queue: nobody beats a heart there
    reason: str = ""  # in the scheduler's words
    running_seconds: float | None = None  # of the job since it last started, where that is known
    mend: str = ""  # where to look, and what ends the job, where it runs without a sign of life


def derive(
    run: str,
    history: Sequence[Event],
    *,
    result: bool,
    heartbeat: Heartbeat | None,
    now: float,
    sight: Sight,
    stalled_after: float = 60.0,
    created: float | None = None,
) -> Status:
    """The status of a run.

    result: whether `result.json` is there. sight: what the backend sees of the supervisor.
    stalled_after: seconds of silence. created: when the record was begun, where nothing has
    happened yet.
    """
    if result:
        return Status(RunState.FINISHED)
    since = _since_launch(history)
    for event in reversed(since):
        if event.kind == ev.CANCELLED:
            return Status(
                RunState.CANCELLED,
                f"by {_canceller(since)}",
                f"igpt-jobs resume {run} goes on with what it has saved",
                5,
            )
        if event.kind == ev.FAILED and event.fields.get("final"):
            code = 2 if event.fields.get("class") == "user-error" else 1
            return Status(
                RunState.FAILED,
                f"{event.fields.get('class')}: {event.fields.get('reason')}",
                f"igpt-jobs logs {run} shows more; igpt-jobs resume {run} tries again",
                code,
            )
    resume = f"igpt-jobs resume {run} goes on with what it has saved"
    if sight.alive and sight.waiting:
        return Status(RunState.QUEUED, _waiting(since, sight.reason))
    launched = any(event.kind == ev.LAUNCHED for event in since)
    if not launched and not sight.alive:
        begun = since[0].time if since else created or 0.0
        if now - begun < LAUNCH_GRACE:
            return Status(RunState.SUBMITTED, "recorded, not launched yet")
        why = sight.reason or "the client died"
        return Status(RunState.STALLED, f"recorded, but never launched ({why})", resume, 6)
    if sight.alive is False:
        saved = since[-1].kind == ev.PREEMPTED
        why = "stopped with its machine, saved" if saved else "its supervisor is gone"
        if sight.reason:
            why = f"{why} ({sight.reason})"
        return Status(RunState.STALLED, why, resume, 6)
    ran = sight.running_seconds
    if heartbeat and ran is not None and now - heartbeat.time > ran + stalled_after:
        heartbeat = None  # of an earlier start of the job, however clocks differ
    if heartbeat is None and sight.reason:
        # The scheduler has it, and had it for as long as it liked: only what runs can be silent.
        if ran is not None and ran > STARTING_SECONDS:
            silent = f"started {ran // 60:.0f} min ago and gave no sign of life ({sight.reason})"
            mend = f"{sight.mend}, then {resume}" if sight.mend else resume
            return Status(RunState.STALLED, silent, mend, 6)
        return Status(RunState.QUEUED, f"starting: {sight.reason}" if sight.alive else sight.reason)
    # A clock that is ahead must not make a dead run look alive for long.
    last = min(now, max(heartbeat.time if heartbeat else 0.0, since[-1].time))
    if ran is not None:
        last = max(last, now - ran)
    if now - last > stalled_after:
        silent = f"no sign of life for {now - last:.0f} s"
        if sight.reason:
            silent = f"{silent} ({sight.reason})"
        left = HELD_SECONDS - (now - last)
        if not sight.alive or left <= 0:
            return Status(RunState.STALLED, silent, resume, 6)
        held = (
            "its cluster still has it, and most likely it goes on by itself; "
            f"if it is silent for {math.ceil(left / 60)} min more, {resume}"
        )
        return Status(RunState.STALLED, silent, held, 6, held=True)
    if heartbeat and heartbeat.phase == "running":
        return Status(RunState.RUNNING)
    wanted = heartbeat.progress.get("waiting_for") if heartbeat else None
    return Status(RunState.QUEUED, f"waiting for {wanted or 'a free slot'}")


def _waiting(since: Sequence[Event], reason: str) -> str:
    """What it waits for, and how the last attempt ended where there was one."""
    for event in reversed(since):
        if event.kind in (ev.PREEMPTED, ev.FAILED):
            return f"{event.fields.get('class')}: {event.fields.get('reason')}; now {reason}"
    return reason


def _canceller(since: Sequence[Event]) -> str:
    asked = [event for event in since if event.kind == ev.CANCEL_REQUESTED]
    return str(asked[-1].fields.get("by", "the user")) if asked else "the user"


def failures_since_launch(history: Sequence[Event]) -> dict[int, str]:
    """By attempt, the class of each failure since the run was last submitted or resumed.

    An attempt fails once, however often a store that comes and goes let that be written.
    """
    return {
        event.attempt or 0: str(event.fields.get("class"))
        for event in _since_launch(history)
        if event.kind == ev.FAILED
    }


def cancel_requested(history: Sequence[Event]) -> bool:
    """Whether the user asked to cancel since the run was last submitted or resumed."""
    return any(event.kind == ev.CANCEL_REQUESTED for event in _since_launch(history))


def overtaken(history: Sequence[Event], attempt: int) -> bool:
    """Whether somebody has launched a later attempt, which may still be waiting for its turn.

    What a supervisor starts again itself is not launched, so an attempt of our own never counts.
    """
    return any((event.attempt or 0) > attempt for event in history if event.kind == ev.LAUNCHED)


def _since_launch(history: Sequence[Event]) -> list[Event]:
    """The events of the last submission or resumption: those of its attempt and of later ones.

    By attempt and not by time: an old attempt that wakes up after a newer one began may still
    write, and clocks differ.
    """
    first = max((event.attempt or 0 for event in history if event.kind == ev.SUBMITTED), default=0)
    return [event for event in history if (event.attempt or 0) >= first]
