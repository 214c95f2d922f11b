"""`igpt-jobs init`."""

from pathlib import Path
from typing import Annotated

import typer

from igpt.cli.common import JsonOption, print_json, say
from igpt.jobs.recipes import write_recipes


def command(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the recipes (jobs/, clusters/, sweeps/) here, to read and edit.

    Example: igpt-jobs init my-study
    """
    written, kept = write_recipes(folder, force=force)
    if as_json:
        print_json({"written": [str(p) for p in written], "kept": [str(p) for p in kept]})
        return
    for path in written:
        say(f"wrote {path}")
    for path in kept:
        say(f"kept {path} (--force writes over it)")
