"""`igpt-jobs delete RUN`."""

import sys
import time

from igpt.cli.common import (
    JsonOption,
    RunArgument,
    StoreOption,
    YesOption,
    confirm,
    print_json,
    run_of,
    say,
)
from igpt.clusters import look, status
from igpt.errors import DataCorrupt, UserError
from igpt.runs import Run

#: A run that has just ended may be shipping its last lines.
_QUIET_SECONDS = 15.0


def command(
    run: RunArgument, store: StoreOption = None, yes: YesOption = False, as_json: JsonOption = False
) -> None:
    """Remove a run with its checkpoints, logs and samples. There is no way back, so it asks.

    Example: igpt-jobs delete pretrain-1a2b3c4d
    """
    found = run_of(run, store)
    try:
        now = status(found)
        state = str(now.state)
        if now.state.active or not _is_quiet(found):
            doing = now.reason if now.state.active and now.reason else "its supervisor at work"
            raise UserError(
                f"run {found.id} is {now.state}, {doing}",
                mend=f"igpt-jobs cancel {found.id} --wait first",
            )
    except DataCorrupt as damage:  # a damaged record must not be in the way of removing it
        state = f"damaged: {damage.what}"
    objects = found.record.objects()
    size = sum(info.size for info in objects)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"{found.id} would lose {len(objects)} objects, {size / 1e6:,.1f} MB",
                mend="--yes says that this is meant",
            )
        question = f"Delete {found.id} ({state}, {len(objects)} objects, {size / 1e6:,.1f} MB)?"
        confirm(question, "nothing deleted", default=False)
    removed = found.delete()
    if as_json:
        print_json({"run": found.id, "objects": removed, "bytes": size})
    else:
        say(f"deleted {found.id}: {removed} objects")


def _is_quiet(run: Run) -> bool:
    """Whether nobody writes into the run any more; waits a little for one that has just ended."""
    deadline = time.monotonic() + _QUIET_SECONDS
    while look(run).alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
