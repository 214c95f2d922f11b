"""Watching one run to its end: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from igpt.cli.common import console, say
from igpt.clusters import status
from igpt.errors import Unreachable
from igpt.jobs.context import progress_line
from igpt.runs import Run
from igpt.runs.state import Heartbeat, RunState, Status

LOOK_SECONDS = 0.5
LOOK_SECONDS_REMOTE = 2.0  # each look is some ten requests
_PLAIN_SECONDS = 15.0

T = TypeVar("T")


class Looks(Generic[T]):
    """Looks after a first one that was answered; a store that is away since is said to be, once."""

    def __init__(self, first: T) -> None:
        self.seen = first  # what was seen last
        self._away = False

    def again(self, look: Callable[[], T]) -> None:
        """Looks once more; while the store is away, what was seen stays as it is."""
        why = ""
        try:
            self.seen = look()
        except Unreachable as error:
            why = error.what
        self._away = tell_away(why, self._away)


def tell_away(why: str, away: bool) -> bool:
    """Says once that the store is away, and once that it is back; returns whether it is away."""
    if why and not away:
        say(f"no answer from the store, asking again: {why}")
    if away and not why:
        say("the store answers again")
    return bool(why)


def follow(run: Run, *, label: str | None = None) -> Status:
    """Shows a run until it ends and returns how it ended.

    Ctrl-C leaves the run alive, and says so on the way out.
    """
    screen = console(stderr=True)
    poll = LOOK_SECONDS if run.record.local_path("spec.yaml") else LOOK_SECONDS_REMOTE

    def look() -> tuple[Status, Heartbeat | None]:
        return status(run), run.heartbeat()

    try:
        with (
            _bar(screen, label or run.id) if screen.is_terminal else _lines(label or run.id)
        ) as show:
            looks = Looks(look())
            while True:
                now, heartbeat = looks.seen
                show(now, heartbeat.progress if heartbeat else {})
                if not now.open:
                    return now
                time.sleep(poll)
                looks.again(look)
    except KeyboardInterrupt:
        say(f"\n{run.id} goes on without you: igpt-jobs status {run.id}")
        raise


def outcome(run: Run, end: Status) -> str:
    """How a run ended, in a line or two."""
    text = f"{run.id} {end.state}"
    if end.reason:
        text += f": {end.reason}"
    return f"{text}\n{end.next}" if end.next else text


@contextmanager
def _bar(screen: Console, label: str) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task(label, total=None, detail="")

        def show(now: Status, fields: dict[str, Any]) -> None:
            done, total = fields.get("done"), fields.get("total")
            if now.state is RunState.FINISHED:  # the last heartbeat may still be on its way
                progress.update(task, completed=total or 1, total=total or 1, detail="finished")
            else:
                said = "" if now.held else progress_line(fields)
                detail = said or str(now.state)
                progress.update(task, completed=done or 0, total=total, detail=detail)

        yield show


@contextmanager
def _lines(label: str) -> Iterator[Any]:
    last: tuple[str, Any] = ("", None)
    said = 0.0

    def show(now: Status, fields: dict[str, Any]) -> None:
        nonlocal last, said
        done = fields.get("done")
        if not now.open:
            return  # whoever follows says how it ended
        changed = now.state != last[0]
        due = done != last[1] and time.monotonic() - said > _PLAIN_SECONDS
        if changed or due:
            how = f": {now.reason}; {now.next}" if now.held else f"  {progress_line(fields)}"
            say(f"{label} {now.state}{how}".rstrip())
            last, said = (now.state, done), time.monotonic()

    yield show
