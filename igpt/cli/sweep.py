"""`igpt-jobs sweep SWEEP`."""

from typing import Annotated

import typer

from igpt.cli.common import (
    ClusterOption,
    FollowOption,
    JsonOption,
    OverrideArguments,
    StoreOption,
    YesOption,
)
from igpt.cli.submit import DryRunOption, NameOption, NewOption, start


def command(
    sweep: Annotated[str, typer.Argument(help="A recipe: a path, or a name in sweeps/.")],
    overrides: OverrideArguments = None,
    cluster: ClusterOption = "local",
    store: StoreOption = None,
    name: NameOption = None,
    dry_run: DryRunOption = False,
    follow: FollowOption = False,
    new: NewOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a sweep; `probe` without more probes the newest finished pretraining run.

    Example: igpt-jobs sweep probe model=pretrain-1a2b3c4d budgets=[40,250,4000] --follow
    """
    start("sweeps", sweep, overrides or [], cluster, store, name, dry_run, follow, new, as_json)
