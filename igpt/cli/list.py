"""`igpt-jobs list`."""

from rich.table import Table

from igpt.cli.common import JsonOption, StoreOption, age, console, out, print_json, say, store_of
from igpt.clusters import status
from igpt.runs.listing import list_hints
from igpt.runs.record import open_run


def command(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """The runs of a store, the newest first.

    Example: igpt-jobs list --store s3://bucket/study
    """
    root = store_of(store)
    rows = []
    for hint in list_hints(root):
        # The hint of a run that should be alive may be out of date; its record is not.
        state = status(open_run(root, hint.run)).state if hint.state.active else hint.state
        rows.append((hint, state))
    if as_json:
        print_json(
            [
                {
                    "run": hint.run,
                    "state": state,
                    "submitted": hint.submitted,
                    "changed": hint.changed,
                }
                for hint, state in rows
            ]
        )
        return
    if not rows:
        say(f"no runs in {root.uri}; igpt-jobs submit JOB starts one")
        return
    screen = console()
    if not screen.is_terminal:
        for hint, state in rows:
            out(f"{hint.run}\t{state}\t{age(hint.submitted)}")
        return
    table = Table(box=None, header_style="bold")
    table.add_column("run", overflow="fold")  # a name has to be whole to be of use
    for title in ("state", "submitted", "changed"):
        table.add_column(title)
    for hint, state in rows:
        table.add_row(
            hint.run, str(state), f"{age(hint.submitted)} ago", f"{age(hint.changed)} ago"
        )
    screen.print(table)
