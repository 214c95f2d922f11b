"""What `watch` and `list` show of a run, as plain data, and what follows from it. Pure.

`igpt/cli/look.py` fills it from a store, `igpt/cli/draw.py` puts it on a terminal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from igpt.jobs.context import progress_line
from igpt.jobs.estimate import counted
from igpt.runs import events as ev
from igpt.runs.attempts import Claim
from igpt.runs.events import Event
from igpt.runs.state import RunState

#: Of a run whose record cannot be read, in a list of runs; else a state of `RunState`.
DAMAGED = "damaged"

#: What has ended is of interest for so long,
RECENT_SECONDS = 3600.0
#: and what has stalled, as somebody should see to it.
STALLED_SECONDS = 24 * 3600.0

#: A speed that was seen for less long than this (seconds) says little of what is left.
_SPEED_SECONDS = 20.0
_BARS = "▁▂▃▄▅▆▇█"
_ENDINGS = (ev.FAILED, ev.PREEMPTED, ev.SUPERSEDED, ev.CANCELLED, ev.FINISHED)


@dataclass(frozen=True)
class Row:
    """One run among others. Times are in seconds since the epoch."""

    run: str
    state: str
    submitted: float
    changed: float
    reason: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)  # of an active run
    heartbeat: float | None = None
    seconds_left: float | None = None

    @property
    def active(self) -> bool:
        """Whether something is, or should soon be, working on the run."""
        return self.state != DAMAGED and RunState(self.state).active

    def plain(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Attempt:
    """One attempt: where it began, on what, and how it ended."""

    attempt: int
    outcome: (
        str  # waiting, running, stalled, finished, failed, preempted, cancelled, superseded ...
    )
    reason: str = ""  # of a failure: its class and what happened
    start_step: int | None = None  # None before it has claimed the run, as all below
    workers: int | None = None
    host: str | None = None
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The last committed checkpoint."""

    step: int
    time: float


@dataclass(frozen=True)
class Loss:
    """The training loss of a step, nats per token."""

    step: int
    loss: float


@dataclass(frozen=True)
class RunView:
    """Everything `watch RUN` shows. Times are in seconds since the epoch."""

    run: str
    uri: str
    job: str
    state: RunState
    reason: str
    next: str
    exit_code: int
    cluster: str | None  # its kind
    cluster_job: str | None  # how the scheduler knows it, where there is one
    workers: int | None
    host: str | None
    progress: Mapping[str, Any]
    heartbeat: float | None
    seconds_left: float | None
    attempts: Sequence[Attempt]
    last_checkpoint: Checkpoint | None
    losses: Sequence[Loss]
    held: bool = False  # silent, but its cluster still has it

    def plain(self) -> dict[str, Any]:
        """The view for JSON, without the history of losses, which is in the metrics."""
        body = asdict(self)
        del body["losses"], body["exit_code"], body["held"]
        return body


def attempts(
    numbers: Sequence[int], claims: Sequence[Claim], history: Sequence[Event], state: RunState
) -> list[Attempt]:
    """The attempts of a run from its record. `numbers` are all, claimed or not."""
    claimed = {one.attempt: one for one in claims}
    found = []
    for number in numbers:
        own = [one for one in history if one.attempt == number and one.kind in _ENDINGS]
        ending = own[-1] if own else None
        if ending:
            outcome, reason = ending.kind, _why(ending)
        elif number != max(numbers):
            outcome, reason = "lost", "it left no word of its end"
        elif state is RunState.RUNNING and number not in claimed:
            outcome, reason = "starting", ""
        elif state.active and number not in claimed:
            outcome, reason = "waiting", ""
        else:
            outcome, reason = str(state), ""
        one = claimed.get(number)
        ended = ending.time if ending else None
        if one is None:
            found.append(Attempt(number, outcome, reason, ended=ended))
        else:
            placed = (one.start_step, one.workers, one.host, one.time)
            found.append(Attempt(number, outcome, reason, *placed, ended=ended))
    return found


def is_of_interest(row: Row, now: float) -> bool:
    """Whether the run belongs among those that are watched."""
    kept = STALLED_SECONDS if row.state in (RunState.STALLED, DAMAGED) else RECENT_SECONDS
    return row.active or _silence(row, now) < kept


def is_settled(row: Row, now: float) -> bool:
    """Whether the run is over for good, unless somebody resumes it."""
    if row.state == RunState.STALLED:  # a machine or a network may come back
        return _silence(row, now) > RECENT_SECONDS
    return not row.active


def remaining(
    seen: Sequence[tuple[float, int]], progress: Mapping[str, Any], now: float
) -> float | None:
    """The seconds until the work is done, None where nobody can say.

    seen: (time, done) of the signs of life of this attempt, oldest first. Their speed counts, which
    has validations and checkpoints in it; until it is known, what the job says itself.
    """
    done, total = progress.get("done"), progress.get("total")
    if done is None or not total or not seen:
        return None
    (first, before), (last, after) = seen[0], seen[-1]
    left = progress.get("seconds_left")
    if last - first >= _SPEED_SECONDS and after > before:
        left = (total - after) * (last - first) / (after - before)
    return None if left is None else max(0.0, left - max(0.0, now - last))


def extended(losses: Sequence[Loss], new: Sequence[Loss], most: int = 512) -> list[Loss]:
    """The losses with newer ones added. A step that comes again takes the place of its future."""
    if not new:
        return list(losses)
    return ([one for one in losses if one.step < new[0].step] + list(new))[-most:]


def sparkline(losses: Sequence[Loss], width: int) -> str:
    """The losses as at most `width` bars: each the mean of an equal share of the steps.

    A share without a loss is as high as the one before it.
    """
    if len(losses) < 2 or width < 1:
        return ""
    first, span = losses[0].step, losses[-1].step - losses[0].step + 1
    count = min(width, len(losses))
    shares: list[list[float]] = [[] for _ in range(count)]
    for one in losses:
        shares[(one.step - first) * count // span].append(one.loss)
    means: list[float] = []
    for share in shares:
        means.append(sum(share) / len(share) if share else means[-1])
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def what_next(view: RunView) -> str:
    """What happens next, in a sentence."""
    if view.next:
        return view.next
    if view.state is RunState.SUBMITTED:
        return "its supervisor starts"
    if view.state is RunState.QUEUED:
        return "it starts by itself when its turn comes"
    if view.state is RunState.RUNNING:
        saved, done = view.last_checkpoint, view.progress.get("done")
        if saved is None:
            return "after a failure it would begin again"
        again = f" and do {done - saved.step:,} again" if done and done > saved.step else ""
        return f"after a failure it would go on from step {saved.step:,}{again}"
    if view.state is RunState.FINISHED and view.job == "pretrain":
        return f"igpt-jobs sweep probe model={view.run}, igpt-jobs report {view.run}"
    return ""


def changes(before: RunView | None, after: RunView) -> list[str]:
    """What is new since the last look, as plain lines; progress is no news."""
    known = before.attempts if before else ()
    lines = [
        f"attempt {one.attempt}: {attempt_line(one)}" for one in after.attempts if one not in known
    ]
    if after.last_checkpoint and (not before or before.last_checkpoint != after.last_checkpoint):
        lines.append(f"checkpoint of step {after.last_checkpoint.step:,}")
    still = before is not None and before.held and after.held  # how long it is silent is no news
    if not still and (
        before is None or (before.state, before.reason) != (after.state, after.reason)
    ):
        lines.append(str(after.state) + (f": {after.reason}" if after.reason else ""))
    return lines


def attempt_line(one: Attempt, now: float | None = None) -> str:
    """An attempt in a sentence; with `now` also how long it has lasted."""
    parts = []
    if one.start_step is not None:
        count = counted(one.workers or 0, "worker")
        parts.append(f"from step {one.start_step:,}, {count} on {one.host}")
    if now is not None and one.started is not None:
        end = now if one.outcome == "running" else one.ended
        if end is not None:
            parts.append(duration(end - one.started))
    ending = one.outcome + (f" ({one.reason})" if one.reason else "")
    return ", ".join([*parts, ending])


def progress_text(row: Row | RunView) -> str:
    """Progress, speed and what is left, in a plain line."""
    parts = [progress_line(row.progress)] if row.progress.get("total") else []
    if row.seconds_left is not None and row.state == RunState.RUNNING:
        parts.append(f"{duration(row.seconds_left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `1 h 12 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 2880:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def clock(time: float, now: float) -> str:
    """The local time of day; with the day where that is another than today."""
    when, today = datetime.fromtimestamp(time), datetime.fromtimestamp(now)
    return when.strftime("%H:%M" if when.date() == today.date() else "%a %d %b %H:%M")


def _silence(row: Row, now: float) -> float:
    return now - max(row.changed, row.heartbeat or 0.0)


def _why(ending: Event) -> str:
    if ending.kind in (ev.FINISHED, ev.CANCELLED):
        return ""
    failure, reason = ending.fields.get("class"), ending.fields.get("reason")
    return ": ".join(str(part) for part in (failure, reason) if part)
