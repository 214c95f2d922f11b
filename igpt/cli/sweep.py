"""`igpt-jobs sweep SWEEP`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from igpt.cli.common import (
    ClusterOption,
    FollowOption,
    JsonOption,
    OverrideArguments,
    StoreOption,
    YesOption,
    console,
)
from igpt.cli.streams import output
from igpt.cli.submit import AfterOption, DryRunOption, NameOption, NewOption, Wishes, start
from igpt.runs import Run
from igpt.runs.state import RunState


def command(
    sweep: Annotated[str, typer.Argument(help="A recipe: a path, or a name in sweeps/.")],
    overrides: OverrideArguments = None,
    cluster: ClusterOption = "local",
    store: StoreOption = None,
    name: NameOption = None,
    after: AfterOption = None,
    dry_run: DryRunOption = False,
    follow: FollowOption = False,
    new: NewOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a sweep; `probe` without more probes the newest finished pretraining run.

    Example: igpt-jobs sweep probe model=pretrain-1a2b3c4d budgets=[40,250,4000] --follow
    """
    wishes = Wishes(cluster, store, name, after or [], dry_run, follow, new, yes, as_json)
    submission, end = start("sweeps", sweep, overrides or [], wishes)
    if end and end.state is RunState.FINISHED and not as_json:
        show_probes(submission.run)
    raise typer.Exit(end.exit_code if end else 0)


def show_probes(run: Run) -> None:
    """The choices and the accuracies by layer of a finished probe, as tables."""
    from igpt.report import Report, tables
    from igpt.report.study import probe_table

    screen = console()
    for table in tables(Report(title=run.id, made=datetime.now(UTC), probes=probe_table(run))):
        with output():
            screen.print(table)
