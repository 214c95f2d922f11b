"""`igpt-jobs list`."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from igpt.cli.common import JsonOption, StoreOption, age, console, out, print_json, say, store_of
from igpt.cli.look import rows
from igpt.cli.view import Row, progress_text
from igpt.runs.listing import list_hints
from igpt.runs.state import RunState
from igpt.storage import Store


def command(
    store: StoreOption = None,
    state: Annotated[
        list[RunState] | None, typer.Option("--state", help="Only of this state; may be repeated.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Only the newest so many.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The runs of a store, the newest first.

    Example: igpt-jobs list --store s3://bucket/study --state running --state queued
    """
    root = store_of(store)
    found = select(root, state or [], limit)
    if as_json:
        print_json([row.plain() for row in found])
        return
    if not found:
        of_state = f" that is {' or '.join(state)}" if state else "s"
        hint = "igpt-jobs list shows all" if state else "igpt-jobs submit JOB starts one"
        say(f"no run{of_state} in {root.uri}; {hint}")
        return
    screen = console()
    if screen.is_terminal:
        screen.print(_table(found))
        return
    for row in found:
        out("\t".join([row.run, row.state, age(row.submitted), progress_text(row)]).rstrip())


def select(root: Store, states: Sequence[RunState], limit: int | None) -> list[Row]:
    """The newest runs of these states, or of any; `limit` says how many at most."""
    hints = list_hints(root)
    if not states:
        return rows(hints[:limit], root)
    # What has ended is as its hint says; only the record tells what became of the others.
    hints = [hint for hint in hints if hint.state.active or hint.state in states]
    return [row for row in rows(hints, root) if row.state in states][:limit]


def _table(found: Sequence[Row]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("run", overflow="fold")  # a name has to be whole to be of use
    for title in ("state", "submitted", "changed", "progress"):
        table.add_column(title)
    for row in found:
        ages = [f"{age(time)} ago" for time in (row.submitted, row.changed)]
        table.add_row(row.run, row.state, *ages, Text(progress_text(row)))
    return table
