"""`igpt-jobs logs RUN`."""

import time
from typing import Annotated

import typer

from igpt.cli.common import RunArgument, StoreOption, console, out, run_of, say
from igpt.cli.follow import LOOK_SECONDS, LOOK_SECONDS_REMOTE
from igpt.clusters import look, status
from igpt.errors import NotFound
from igpt.runs.attempts import attempt_numbers
from igpt.runs.logs import new_lines

_COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def command(
    run: RunArgument,
    store: StoreOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="Of one rank; default: all.")] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Of one attempt; default: all.")
    ] = None,
) -> None:
    """What a run's workers print, across its attempts.

    Example: igpt-jobs logs pretrain-1a2b3c4d -f --rank 0
    """
    found = run_of(run, store)
    numbers = attempt_numbers(found.record)
    if attempt is not None and attempt not in numbers:
        raise NotFound(f"{found.id} has no attempt {attempt}", expected=f"one of {numbers}")
    screen = console()
    seen: set[str] = set()
    last = (0, 0)
    try:
        while True:
            # Asked before reading, so that what was written up to the end is read once more. The
            # supervisor ships the last lines after the state has changed.
            active = status(found).state.active or look(found).alive
            for number in attempt_numbers(found.record):
                if attempt is not None and number != attempt:
                    continue
                for source, line in new_lines(found.record, number, seen, rank):
                    if number != last[0]:
                        say(f"--- attempt {number} ---")
                    last = (number, source)
                    if screen.is_terminal:
                        color = _COLORS[source % len(_COLORS)]
                        screen.print(f"[{color}]\\[{source}][/{color}]", end=" ")
                        screen.print(line, markup=False, soft_wrap=True)
                    else:
                        out(f"[{source}] {line}")
            if not follow or not active:
                break
            time.sleep(LOOK_SECONDS if found.record.local_path("x") else LOOK_SECONDS_REMOTE)
    except KeyboardInterrupt:
        say(f"{found.id} goes on without you")
        raise typer.Exit(130) from None
    if rank is not None and not seen:
        raise NotFound(f"{found.id} has no output of rank {rank}")
