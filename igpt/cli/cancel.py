"""`igpt-jobs cancel RUN`."""

import time
from typing import Annotated

import typer

from igpt.cli.common import JsonOption, RunArgument, StoreOption, print_json, run_of, say
from igpt.clusters import cancel, pursue_cancel, status
from igpt.runs.state import RunState

#: A request that came between two attempts was heard by nobody; it is made again now and then.
_ASK_SECONDS = 5.0


def command(
    run: RunArgument,
    store: StoreOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has stopped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop a run; its workers save a checkpoint first, and `resume` can go on from it.

    Example: igpt-jobs cancel pretrain-1a2b3c4d
    """
    found = run_of(run, store)
    now, asked = cancel(found), time.monotonic()
    while wait and now.state.active:
        time.sleep(0.3)
        if time.monotonic() - asked > _ASK_SECONDS:
            asked, now = time.monotonic(), pursue_cancel(found)
        else:
            now = status(found)
    if as_json:
        print_json({"run": found.id, "state": now.state})
    elif now.state.active:
        say(f"{found.id} is asked to stop; igpt-jobs status {found.id} says when it has")
    elif now.state is RunState.CANCELLED:
        say(f"{found.id} cancelled; {now.next}")
    else:
        say(f"{found.id} had ended already: {now.state}")
