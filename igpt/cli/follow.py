"""Watching one run to its end: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from igpt.cli.common import console, say
from igpt.clusters import status
from igpt.jobs.context import progress_line
from igpt.runs import Run
from igpt.runs.state import RunState, Status

LOOK_SECONDS = 0.5
LOOK_SECONDS_REMOTE = 2.0  # each look is some ten requests
_PLAIN_SECONDS = 15.0


def follow(run: Run, *, label: str | None = None) -> Status:
    """Shows a run until it ends and returns how it ended.

    Ctrl-C leaves the run alive, and says so on the way out.
    """
    screen = console(stderr=True)
    poll = LOOK_SECONDS if run.record.local_path("spec.yaml") else LOOK_SECONDS_REMOTE
    try:
        with (
            _bar(screen, label or run.id) if screen.is_terminal else _lines(label or run.id)
        ) as show:
            while True:
                now = status(run)
                heartbeat = run.heartbeat()
                show(now, heartbeat.progress if heartbeat else {})
                if not now.state.active:
                    return now
                time.sleep(poll)
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
                detail = progress_line(fields) or str(now.state)
                progress.update(task, completed=done or 0, total=total, detail=detail)

        yield show


@contextmanager
def _lines(label: str) -> Iterator[Any]:
    last: tuple[str, Any] = ("", None)
    said = 0.0

    def show(now: Status, fields: dict[str, Any]) -> None:
        nonlocal last, said
        done = fields.get("done")
        if not now.state.active:
            return  # whoever follows says how it ended
        changed = now.state != last[0]
        due = done != last[1] and time.monotonic() - said > _PLAIN_SECONDS
        if changed or due:
            say(f"{label} {now.state}  {progress_line(fields)}".rstrip())
            last, said = (now.state, done), time.monotonic()

    yield show
