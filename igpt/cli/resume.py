"""`igpt-jobs resume RUN`."""

from typing import Annotated

import typer

from igpt.cli.common import (
    FollowOption,
    JsonOption,
    RunArgument,
    StoreOption,
    here,
    print_json,
    run_of,
    say,
)
from igpt.cli.follow import follow as follow_run
from igpt.cli.follow import outcome
from igpt.clusters import load_cluster, resume, status
from igpt.jobs.references import newest_checkpoint


def command(
    run: RunArgument,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Another cluster file than before.")
    ] = None,
    store: StoreOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take over a run that still seems alive.")
    ] = False,
    from_step: Annotated[
        int | None,
        typer.Option(
            "--from",
            min=0,
            help="From the newest checkpoint up to this step; 0: from the beginning.",
        ),
    ] = None,
    new_code: Annotated[
        bool, typer.Option("--new-code", help="With today's code, not with the submission's.")
    ] = False,
    follow: FollowOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that has stopped, from its last committed checkpoint.

    Example: igpt-jobs resume pretrain-1a2b3c4d --cluster clusters/two-workers.yaml
    """
    found = run_of(run, store)
    resume(
        found,
        load_cluster(cluster, here()) if cluster else None,
        force=force,
        from_step=from_step,
        new_code=new_code,
    )
    best = newest_checkpoint(found, at_most=from_step)
    say(f"{found.id} goes on from {f'step {best[0]:,}' if best else 'the beginning'}")
    end = follow_run(found) if follow else status(found)
    if as_json:
        print_json({"run": found.id, "state": end.state, "step": best[0] if best else 0})
    elif follow:
        say(outcome(found, end))
    raise typer.Exit(end.exit_code if follow else 0)
