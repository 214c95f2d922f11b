"""`igpt-jobs logs RUN`."""

import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from igpt.cli.common import (
    JsonOption,
    RunArgument,
    StoreOption,
    console,
    out,
    print_json,
    run_of,
    say,
)
from igpt.cli.follow import LOOK_SECONDS, LOOK_SECONDS_REMOTE
from igpt.clusters import look, status
from igpt.errors import NotFound
from igpt.runs import Run
from igpt.runs.attempts import attempt_numbers
from igpt.runs.logs import new_lines

_COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red")

#: (attempt, rank, text)
Line = tuple[int, int, str]


def command(
    run: RunArgument,
    store: StoreOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="Of one rank; default: all.")] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Of one attempt; default: all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What a run's workers print, across its attempts. With --follow --json, once it has ended.

    Example: igpt-jobs logs pretrain-1a2b3c4d -f --rank 0
    """
    found = run_of(run, store)
    numbers = attempt_numbers(found.record)
    if attempt is not None and attempt not in numbers:
        raise NotFound(f"{found.id} has no attempt {attempt}", expected=f"one of {numbers}")
    seen: set[str] = set()
    lines = _lines(found, seen, rank, attempt, follow=follow)
    try:
        if as_json:
            plain = [{"attempt": number, "rank": of, "text": text} for number, of, text in lines]
            if rank is None or seen:
                print_json({"run": found.id, "lines": plain})
        else:
            _show(lines, console())
    except KeyboardInterrupt:
        say(f"{found.id} goes on without you")
        raise typer.Exit(130) from None
    if rank is not None and not seen:
        raise NotFound(f"{found.id} has no output of rank {rank}")


def _lines(
    run: Run, seen: set[str], rank: int | None, attempt: int | None, *, follow: bool
) -> Iterator[Line]:
    """The lines so far, or with `follow` to the run's end. `seen` grows by the parts read."""
    while True:
        # Asked before reading, so that what was written up to the end is read once more. The
        # supervisor ships the last lines after the state has changed.
        active = status(run).state.active or look(run).alive
        for number in attempt_numbers(run.record):
            if attempt is None or number == attempt:
                for source, text in new_lines(run.record, number, seen, rank):
                    yield number, source, text
        if not follow or not active:
            return
        time.sleep(LOOK_SECONDS if run.record.local_path("x") else LOOK_SECONDS_REMOTE)


def _show(lines: Iterator[Line], screen: Console) -> None:
    last = 0
    for number, source, text in lines:
        if number != last:
            say(f"--- attempt {number} ---")
        last = number
        if screen.is_terminal:
            color = _COLORS[source % len(_COLORS)]
            screen.print(f"[{color}]\\[{source}][/{color}]", end=" ")
            screen.print(text, markup=False, soft_wrap=True)
        else:
            out(f"[{source}] {text}")
