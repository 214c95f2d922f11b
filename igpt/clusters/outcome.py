"""How an attempt ended, written into the record, and whether another follows.

The same on every kind of cluster: the local supervisor and the last lines of a Slurm job ask here.
"""

import logging
import math
import platform
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from igpt.clusters.notify import Message, NotifyConfig, State, notify
from igpt.errors import IgptError
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import superseded
from igpt.runs.failures import FailureClass, RetryBudget, Verdict, may_retry
from igpt.runs.state import cancel_requested, failures_since_launch, overtaken
from igpt.storage.patience import PATIENCE_SECONDS, insist

log = logging.getLogger("igpt")


@dataclass(frozen=True)
class Settled:
    """What was recorded of an attempt's end. `again`: another attempt is to follow."""

    kind: str  # the event: finished, failed, preempted, cancelled, superseded
    again: bool = False
    pause: float = 0.0  # seconds to wait before the next attempt


def settle(
    run: Run,
    attempt: int,
    verdict: Verdict,
    budget: RetryBudget,
    notice: NotifyConfig,
    *,
    final: bool = False,
    patience: float = PATIENCE_SECONDS,
) -> Settled:
    """Records how an attempt ended, tells whom it concerns, says whether another is to follow.

    final: there cannot be another, whatever the budget says. patience: seconds that a store that
    is away is waited for; then Unreachable.
    """
    log.info("attempt %d: %s %s", attempt, verdict.outcome, verdict.reason)
    settled = insist(partial(_record, run, attempt, verdict, budget, final), patience)
    told: dict[str, State] = {
        ev.FINISHED: "finished",
        ev.CANCELLED: "cancelled",
        ev.PREEMPTED: "requeued" if settled.again else "preempted",
        ev.FAILED: "requeued" if settled.again else "failed",
    }
    if settled.kind in told:
        tell(run, attempt, notice, told[settled.kind], verdict.reason)
    return settled


def tell(run: Run, attempt: int, notice: NotifyConfig, state: State, reason: str = "") -> None:
    """Tells whom the cluster file names of a change of state; what goes wrong is only logged."""
    if state not in notice.on or not (notice.command or notice.webhook):
        return
    try:
        beat = run.heartbeat()
    except IgptError as error:
        log.warning("%s", error)
        beat = None
    progress = beat.progress if beat else {}
    message = Message(
        run=run.id,
        uri=run.uri,
        state=state,
        time=time.time(),
        host=platform.node(),
        reason=reason,
        next=f"igpt-jobs status {run.id}",
        attempt=attempt,
        step=progress.get("done"),
        total=progress.get("total"),
        loss=progress.get("loss"),
    )
    for problem in notify(notice, message):
        log.warning("%s", problem)


def _record(run: Run, attempt: int, verdict: Verdict, budget: RetryBudget, final: bool) -> Settled:
    def note(kind: str, **fields: Any) -> None:
        run.event(kind, writer="supervisor", attempt=attempt, reason=verdict.reason, **fields)

    if not run.record.exists("spec.yaml"):
        return Settled(ev.CANCELLED)
    if verdict.outcome == "finished":
        return Settled(ev.FINISHED)
    # Before all else: whatever became of it, an attempt that a newer one has overtaken is over.
    history = run.events(ev.LIFE)
    newer = superseded(run.record, attempt) or overtaken(history, attempt)
    if verdict.outcome == "superseded" or newer:
        note(ev.SUPERSEDED)
        return Settled(ev.SUPERSEDED)
    if run.record.exists("result.json"):  # whatever became of the ranks after they had made it
        return Settled(ev.FINISHED)
    if cancel_requested(history):
        note(ev.CANCELLED)
        return Settled(ev.CANCELLED)
    if verdict.outcome == "stopped":
        failure = verdict.failure or FailureClass.PREEMPTED
        note(ev.PREEMPTED, **{"class": failure.value})
        return Settled(ev.PREEMPTED, again=not final, pause=1.0)
    failure = verdict.failure or FailureClass.CRASH
    # It may be there already: the store was away in between, and all this is done once more.
    failures = failures_since_launch(history) | {attempt: failure.value}
    again = may_retry(failure, map(FailureClass, failures.values()), budget) and not final
    note(ev.FAILED, **{"class": failure.value, "final": not again})
    return Settled(ev.FAILED, again, _pause(run))


def _pause(run: Run) -> float:
    """Longer with each failure since the last checkpoint: what saves in between may hurry."""
    saved = run.last_event(ev.CHECKPOINTED)
    since = saved.time if saved else 0.0
    failures = {event.attempt for event in run.events({ev.FAILED}) if event.time > since}
    return min(30.0, math.ldexp(0.125, len(failures)))
