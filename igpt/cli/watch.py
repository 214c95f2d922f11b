"""`igpt-jobs watch [RUN]`: a live view on a terminal, plain lines elsewhere.

It only looks, so leaving it changes nothing. A store that is away for a while is said, and asked
again.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from igpt.cli.common import StoreOption, console, out, run_of, say, store_of
from igpt.cli.draw import RunScreen, TableScreen, Trouble
from igpt.cli.follow import LOOK_SECONDS, LOOK_SECONDS_REMOTE, tell_away
from igpt.cli.look import Watched, is_near
from igpt.cli.view import (
    RECENT_SECONDS,
    Row,
    RunView,
    changes,
    is_of_interest,
    is_settled,
    progress_text,
)
from igpt.errors import Unreachable
from igpt.runs import Run
from igpt.runs.listing import Hint, list_hints
from igpt.runs.record import open_run
from igpt.runs.state import RunState
from igpt.storage import Store

_LIST_SECONDS = 10.0  # between looks for runs that are new
_SECONDS_PER_RUN = 0.5  # a look at a run is five requests to a bucket: at most ten a second
_PLAIN_SECONDS = 15.0  # between lines that tell no more than progress

#: Without an answer for this long, beside the pause, a live view says that it waits for one.
_SLOW_SECONDS = 10.0

T = TypeVar("T")
#: Takes what was seen last, when that was, and why there is nothing newer, where that is so.
Show = Callable[[T, float, str], None]


def command(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's name, or the beginning of it; default: all active runs."),
    ] = None,
    store: StoreOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document a line, at each look.")
    ] = False,
) -> None:
    """Look on while runs work. With RUN until it ends, and exits as the run does.

    Example: igpt-jobs watch pretrain-1a2b3c4d
    """
    if run is None:
        root = store_of(store)
        watch(ActiveRuns(root), as_json, f"igpt-jobs watch --store {root.uri}")
        return
    found = run_of(run, store)
    end = watch(OneRun(found), as_json, f"igpt-jobs watch {found.id}")
    raise typer.Exit(end.exit_code)


class Subject(Protocol[T]):
    """What is watched."""

    def look(self) -> T:
        """What there is to see now. Raises Unreachable while the store is away."""

    def pause(self, seen: T) -> float:
        """The seconds until the next look."""

    def ended(self, seen: T) -> bool:
        """Whether there is nothing more to come."""

    def screen(self, seen: T, now: float, trouble: Trouble | None) -> RenderableType:
        """What a terminal shows."""

    def news(self, before: T | None, after: T, *, progress: bool) -> list[str]:
        """What is new, as plain lines; with `progress` also how far the work is."""

    def document(self, seen: T) -> dict[str, Any]:
        """All of it for JSON."""


def watch(subject: Subject[T], as_json: bool, again: str) -> T:
    """Shows the subject until it ends; returns what was seen last. `again` is the command for more.

    Ctrl-C leaves, and says that the runs go on. Raises Unreachable where the first look fails.
    """
    screen = console()
    if as_json:
        shown = _json_lines(subject)
    else:
        shown = _live(subject, screen) if screen.is_terminal else _lines(subject)
    seen, when, why = subject.look(), time.time(), ""
    try:
        with shown as show:
            while True:
                show(seen, when, why)
                if subject.ended(seen):
                    return seen
                time.sleep(LOOK_SECONDS_REMOTE if why else subject.pause(seen))
                try:
                    seen, when, why = subject.look(), time.time(), ""
                except Unreachable as error:
                    why = error.what
    except KeyboardInterrupt:
        say(f"left; what runs goes on without you: {again}")
        raise


class OneRun:
    """One run, to its end."""

    def __init__(self, run: Run) -> None:
        self._watched = Watched(run)
        self._near = is_near(run.root)

    def look(self) -> RunView:
        return self._watched.view()

    def pause(self, seen: RunView) -> float:
        # A scheduler, too, is asked no more often than a store behind a network.
        return LOOK_SECONDS if self._near and seen.cluster == "local" else LOOK_SECONDS_REMOTE

    def ended(self, seen: RunView) -> bool:
        return not (seen.state.active or seen.held)

    def screen(self, seen: RunView, now: float, trouble: Trouble | None) -> RenderableType:
        return RunScreen(seen, now, trouble)

    def news(self, before: RunView | None, after: RunView, *, progress: bool) -> list[str]:
        lines = changes(before, after)
        if progress and after.state.active and (text := progress_text(after)):
            lines.append(text)
        if (self.ended(after) or (after.held and not (before and before.held))) and after.next:
            lines.append(after.next)
        return [f"{after.run}  {line}" for line in lines]

    def document(self, seen: RunView) -> dict[str, Any]:
        return seen.plain()


class ActiveRuns:
    """The runs of a store that are at work, have ended within the hour, or stalled within a day."""

    def __init__(self, root: Store) -> None:
        self._root = root
        self._watched: dict[str, Watched] = {}
        self._hints: list[Hint] = []
        self._listed = -math.inf
        self._settled: dict[Hint, Row] = {}  # of these only a new hint can bring news
        self._hidden = 0  # runs that stalled too long ago

    def look(self) -> list[Row]:
        now = time.time()
        if time.monotonic() - self._listed >= _LIST_SECONDS:
            hints = list_hints(self._root)
            self._hints = [
                hint for hint in hints if hint.state.active or now - hint.changed < RECENT_SECONDS
            ]
            self._listed = time.monotonic()
        rows = [row for hint in self._hints if (row := self._row(hint, now))]
        shown = [row for row in rows if is_of_interest(row, now)]
        self._hidden = sum(row.state == RunState.STALLED for row in rows if row not in shown)
        return sorted(shown, key=lambda row: (not row.active, -row.submitted))

    def pause(self, seen: list[Row]) -> float:
        asked = sum(hint not in self._settled for hint in self._hints)
        return max(LOOK_SECONDS_REMOTE, 0.0 if is_near(self._root) else asked * _SECONDS_PER_RUN)

    def ended(self, seen: list[Row]) -> bool:
        return False  # another run may start at any time

    def screen(self, seen: list[Row], now: float, trouble: Trouble | None) -> RenderableType:
        return TableScreen(seen, self._root.uri, now, self._hidden, trouble)

    def news(self, before: list[Row] | None, after: list[Row], *, progress: bool) -> list[str]:
        known = {row.run: row for row in before or ()}
        lines = []
        for row in after:
            old = known.get(row.run)
            changed = old is None or old.state != row.state
            further = progress and row.active and row.progress != (old.progress if old else {})
            if changed or further:
                text = f"{row.run}  {row.state}" + (f": {row.reason}" if row.reason else "")
                lines.append(f"{text}  {progress_text(row)}".rstrip())
        return lines or ([f"no active runs in {self._root.uri}"] if before is None else [])

    def document(self, seen: list[Row]) -> dict[str, Any]:
        return {"store": self._root.uri, "runs": [row.plain() for row in seen]}

    def _row(self, hint: Hint, now: float) -> Row | None:
        """The run's row; from memory where nothing but a new hint can change it."""
        if hint in self._settled:
            return self._settled[hint]
        # One after the other: a look is in no hurry, and Ctrl-C need not wait for threads.
        if hint.run not in self._watched:
            self._watched[hint.run] = Watched(open_run(self._root, hint.run))
        row = self._watched[hint.run].row(hint)
        if row and is_settled(row, now):
            self._settled[hint] = row
        return row


@contextmanager
def _live(subject: Subject[T], screen: Console) -> Iterator[Show[T]]:
    last: list[tuple[T, float, str]] = []

    def draw() -> RenderableType:
        if not last:
            return ""
        (seen, when, why), now = last[0], time.time()
        late = bool(why) or now - when > subject.pause(seen) + _SLOW_SECONDS
        return subject.screen(seen, now, Trouble(when, why) if late else None)

    # Drawn anew between the looks as well, so that ages and waits are those of now.
    with Live(console=screen, get_renderable=draw, refresh_per_second=2) as live:

        def show(seen: T, when: float, why: str) -> None:
            last[:] = [(seen, when, why)]
            live.refresh()

        yield show


@contextmanager
def _lines(subject: Subject[T]) -> Iterator[Show[T]]:
    before: T | None = None
    away = False
    said = -math.inf

    def show(seen: T, when: float, why: str) -> None:
        nonlocal before, away, said
        away = tell_away(why, away)
        if why:
            return
        due = time.monotonic() - said > _PLAIN_SECONDS
        for line in subject.news(before, seen, progress=due):
            out(f"{datetime.fromtimestamp(when):%H:%M:%S}  {line}")
        if due:
            said = time.monotonic()
        before = seen

    yield show


@contextmanager
def _json_lines(subject: Subject[T]) -> Iterator[Show[T]]:
    away = False

    def show(seen: T, when: float, why: str) -> None:
        nonlocal away
        away = tell_away(why, away)
        if not why:
            out(json.dumps({"time": when, **subject.document(seen)}))

    yield show
