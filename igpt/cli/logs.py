"""`igpt-jobs logs RUN`."""

import time
from typing import Annotated

import typer
from rich.console import Console

from igpt.cli.common import RunArgument, StoreOption, out, run_of, say
from igpt.clusters import status
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
    console = Console(highlight=False, soft_wrap=True)
    seen: set[str] = set()
    last = (0, 0)
    try:
        while True:
            # Asked before reading, so that what was written up to the end is read once more.
            active = status(found).state.active
            for number in attempt_numbers(found.record):
                if attempt is not None and number != attempt:
                    continue
                for source, line in new_lines(found.record, number, seen, rank):
                    if number != last[0]:
                        say(f"--- attempt {number} ---")
                    last = (number, source)
                    if console.is_terminal:
                        color = _COLORS[source % len(_COLORS)]
                        console.print(f"[{color}]\\[{source}][/{color}]", end=" ")
                        console.print(line, markup=False)
                    else:
                        out(f"[{source}] {line}")
            if not follow or not active:
                return
            time.sleep(0.5)
    except KeyboardInterrupt:
        say(f"{found.id} goes on without you")
        raise typer.Exit(130) from None
