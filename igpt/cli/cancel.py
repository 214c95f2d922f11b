"""`igpt-jobs cancel RUN`."""

import time
from functools import partial
from typing import Annotated

import typer

from igpt.cli.common import JsonOption, RunArgument, StoreOption, print_json, run_of, say
from igpt.cli.follow import Looks
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
    looks, asked = Looks(cancel(found)), time.monotonic()
    while wait and looks.seen.open:
        time.sleep(0.3)
        due = time.monotonic() - asked > _ASK_SECONDS
        looks.again(partial(pursue_cancel if due else status, found))
        asked = time.monotonic() if due else asked
    now = looks.seen
    if as_json:
        print_json({"run": found.id, "state": now.state})
    elif now.state.active or now.state is RunState.STALLED:
        say(f"{found.id} is asked to stop; igpt-jobs status {found.id} says when it has")
    elif now.state is RunState.CANCELLED:
        say(f"{found.id} cancelled; {now.next}")
    else:
        say(f"{found.id} had ended already: {now.state}")
