"""Looks at runs for `list` and `watch`, and takes care what that costs a store.

A look at one run is about five requests, or ten the first time.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from igpt.cli.view import DAMAGED, Checkpoint, Loss, Row, RunView, attempts, extended, remaining
from igpt.clusters import status
from igpt.clusters.standing import cluster_of
from igpt.errors import DataCorrupt, NotFound
from igpt.jobs.references import checkpoint_key, newest_checkpoint
from igpt.runs import Run
from igpt.runs.attempts import Claim, attempt_numbers, on_lineage
from igpt.runs.events import CHECKPOINTED, LAUNCHED, LIFE
from igpt.runs.listing import Hint
from igpt.runs.reading import read_json_lines
from igpt.runs.record import open_run
from igpt.runs.remembered import RememberedRecord
from igpt.runs.state import Heartbeat
from igpt.storage import Store

_SIDE_BY_SIDE = 16  # requests at once to a store behind a network
_SPEED_SECONDS = 120.0  # of the signs of life that the speed is taken from
_GAP_SECONDS = 30.0  # without one: what was seen before says nothing of the speed
_LOSSES = 60  # to begin with; what comes later is added
_PARTS = 6  # of the metrics, read for them at most


class Watched:
    """One run that is looked at again and again. It remembers what it has seen."""

    def __init__(self, run: Run) -> None:
        self._memory = RememberedRecord(run.record)
        self._run = replace(run, record=self._memory)
        self._attempt = 0
        self._seen: deque[tuple[float, int]] = deque()  # (time, done) of signs of life
        self._losses: list[Loss] = []

    def row(self, hint: Hint) -> Row | None:
        """How the run stands, for a table; None where it has been deleted."""
        self._memory.forget()
        basic = Row(hint.run, hint.state, hint.submitted, hint.changed)
        try:
            now = status(self._run)
            row = replace(basic, state=str(now.state), reason=now.reason)
            beat = self._run.heartbeat()
        except NotFound:
            return None
        except DataCorrupt as damage:  # one damaged record must not hide all others
            return replace(basic, state=DAMAGED, reason=damage.what)
        if beat is None or not now.state.active:
            return replace(row, heartbeat=beat.time if beat else None)
        left = self._left(beat, max(attempt_numbers(self._run.record)))
        return replace(row, progress=beat.progress, heartbeat=beat.time, seconds_left=left)

    def view(self) -> RunView:
        """All there is to see of the run. Raises NotFound where it has been deleted."""
        self._memory.forget()
        run = self._run
        now = status(run)
        beat = run.heartbeat()
        numbers = attempt_numbers(run.record)
        claims = run.claims()
        cluster = cluster_of(run)
        progress = beat.progress if beat else {}
        if claims:
            self._note_loss(claims[-1].attempt, progress)
        return RunView(
            run=run.id,
            uri=run.uri,
            job=run.spec().job,
            state=now.state,
            reason=now.reason,
            next=now.next,
            exit_code=now.exit_code,
            cluster=cluster.kind if cluster else None,
            cluster_job=_job_of(run),
            workers=cluster.most_workers if cluster else None,
            host=beat.host if beat else None,
            progress=progress,
            heartbeat=beat.time if beat else None,
            seconds_left=self._left(beat, max(numbers)) if beat and now.state.active else None,
            attempts=attempts(numbers, claims, run.events(LIFE), now.state),
            last_checkpoint=last_checkpoint(run, claims),
            losses=tuple(self._losses),
            held=now.held,
        )

    def _left(self, beat: Heartbeat, attempt: int) -> float | None:
        """The seconds until the work is done, by the signs of life seen so far."""
        last = self._seen[-1] if self._seen else None
        if attempt != self._attempt or (last and beat.time - last[0] > _GAP_SECONDS):
            self._seen.clear()
        self._attempt = attempt
        done = beat.progress.get("done")
        if done is not None and (not self._seen or beat.time > self._seen[-1][0]):
            self._seen.append((beat.time, done))
            while beat.time - self._seen[0][0] > _SPEED_SECONDS:
                self._seen.popleft()
        return remaining(self._seen, beat.progress, time.time())

    def _note_loss(self, attempt: int, progress: dict[str, Any]) -> None:
        if (loss := progress.get("loss")) is None:
            return
        step = int(progress["done"])
        if not self._losses:
            self._losses = recent_losses(self._memory.record, attempt, step)
        if not self._losses or self._losses[-1].step != step:
            self._losses = extended(self._losses, [Loss(step, float(loss))])


def rows(hints: Iterable[Hint], root: Store) -> list[Row]:
    """A row for each run, in the order given; those that have been deleted are left out.

    The hint of a run that should be alive may be out of date, so its record is read.
    """
    listed = list(hints)
    alive = [hint for hint in listed if hint.state.active]
    watched = {hint.run: Watched(open_run(root, hint.run)) for hint in alive}
    threads = 1 if is_near(root) else _SIDE_BY_SIDE  # what counts is the way there and back
    with ThreadPoolExecutor(threads) as pool:
        read = pool.map(lambda hint: watched[hint.run].row(hint), alive)
        looked = dict(zip(alive, read, strict=True))
    found = (
        looked[hint] if hint in looked else Row(hint.run, hint.state, hint.submitted, hint.changed)
        for hint in listed
    )
    return [row for row in found if row is not None]


def last_checkpoint(run: Run, claims: Sequence[Claim]) -> Checkpoint | None:
    """The last checkpoint that counts. `claims` are all of the run."""
    saved = run.last_event(CHECKPOINTED)
    if saved and on_lineage(claims, saved.attempt or 0, int(saved.fields["step"])):
        return Checkpoint(int(saved.fields["step"]), saved.time)
    # What was saved last is no longer on the lineage; what is takes a longer look.
    best = newest_checkpoint(run) if saved else None
    if best is None:
        return None
    committed = run.record.objects(f"{checkpoint_key(*best)}/COMMITTED")
    return Checkpoint(best[0], committed[0].modified) if committed else None


def _job_of(run: Run) -> str | None:
    launched = run.last_event(LAUNCHED)
    return str(launched.fields["job"]) if launched and "job" in launched.fields else None


def is_near(store: Store) -> bool:
    """Whether the store is a folder, where a look costs nothing to speak of."""
    return store.local_path("runs") is not None


def recent_losses(record: Store, attempt: int, step: int) -> list[Loss]:
    """The last training losses that an attempt has written before about `step`, oldest first.

    The parts of the metrics are named by their first step, and there may be tens of thousands: only
    those near the step are listed, by ever shorter beginnings of its number.
    """
    newest = f"attempts/{attempt:04d}/metrics-{step:09d}"
    parts: list[str] = []
    for digits in (3, 5, 7, 9):
        parts = [info.key for info in record.objects(newest[:-digits])]
        if len(parts) >= _PARTS:
            break
    losses: list[Loss] = []
    for key in reversed(parts[-_PARTS:]):
        lines = read_json_lines(record, key)
        losses[:0] = [Loss(line["step"], line["loss"]) for line in lines if "loss" in line]
        if len(losses) >= _LOSSES:
            break
    return losses
