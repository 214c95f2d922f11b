"""`igpt-jobs delete RUN`."""

import sys

import typer

from igpt.cli.common import JsonOption, RunArgument, StoreOption, YesOption, print_json, run_of, say
from igpt.clusters import status
from igpt.errors import UserError


def command(
    run: RunArgument, store: StoreOption = None, yes: YesOption = False, as_json: JsonOption = False
) -> None:
    """Remove a run with its checkpoints, logs and samples. There is no way back, so it asks.

    Example: igpt-jobs delete pretrain-1a2b3c4d
    """
    found = run_of(run, store)
    now = status(found)
    if now.state.active:
        raise UserError(
            f"run {found.id} is {now.state}", mend=f"igpt-jobs cancel {found.id} --wait first"
        )
    objects = found.record.objects()
    size = sum(info.size for info in objects)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"{found.id} would lose {len(objects)} objects, {size / 1e6:,.1f} MB",
                mend="--yes says that this is meant",
            )
        question = f"Delete {found.id} ({now.state}, {len(objects)} objects, {size / 1e6:,.1f} MB)?"
        if not typer.confirm(question, err=True):
            raise typer.Exit(0)
    removed = found.delete()
    if as_json:
        print_json({"run": found.id, "objects": removed, "bytes": size})
    else:
        say(f"deleted {found.id}: {removed} objects")
