"""`igpt-jobs plan JOB`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from igpt.cli.common import (
    ClusterOption,
    JsonOption,
    OverrideArguments,
    StoreOption,
    console,
    facts_table,
    here,
    out,
    print_json,
    store_of,
)
from igpt.cli.submit import load_job
from igpt.clusters import load_cluster
from igpt.clusters.planning.forecast import Forecast, forecast
from igpt.jobs import Preparation
from igpt.jobs.recipes import recipe_names


def command(
    job: Annotated[str, typer.Argument(help="A recipe of jobs/ or sweeps/: a path, or a name.")],
    overrides: OverrideArguments = None,
    cluster: ClusterOption = "local",
    store: StoreOption = None,
    upload: Annotated[
        float | None,
        typer.Option(
            "--upload", min=0.001, help="MB of a checkpoint a second, where no run measured it."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What a job or a sweep will cost on a cluster: memory, disk, hours, requeues.

    Example: igpt-jobs plan pretrain data=data/imagenet-32 model.preset=igpt-m --cluster slurm
    """
    folder = here()
    found, config = load_job(_noun(job, folder), job, overrides or [], folder)
    root, where = store_of(store), load_cluster(cluster, folder)
    prepared = found.prepare(config, Preparation(root, folder, where.most_workers, dry_run=True))
    made = forecast(root, found, prepared, where, upload=None if upload is None else upload * 1e6)
    if as_json:
        print_json(
            {
                "facts": made.facts,
                "warnings": made.warnings,
                "notes": made.notes,
                "numbers": made.numbers,
            }
        )
    else:
        show(made)


def show(made: Forecast) -> None:
    """The forecast as a table on a terminal, as plain lines elsewhere."""
    screen = console()
    remarks = [("warning", text) for text in made.warnings]
    remarks += [("note", text) for text in made.notes]
    if not screen.is_terminal:
        out(facts_table(made.facts))
        for kind, text in remarks:
            out(f"{kind}: {text}")
        return
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in made.facts.items():
        table.add_row(name, Text(value))
    for kind, text in remarks:
        table.add_row(Text(kind, style="red" if kind == "warning" else "yellow"), Text(text))
    screen.print(table)


def _noun(recipe: str, folder: Path) -> str:
    """Whether a recipe is one of sweeps/: what jobs/ does not have."""
    name = recipe.removesuffix(".yaml")
    is_sweep = name in recipe_names("sweeps", folder) and name not in recipe_names("jobs", folder)
    return "sweeps" if is_sweep else "jobs"
