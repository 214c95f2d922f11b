"""`igpt-jobs report RUN`."""

from pathlib import Path
from typing import Annotated

import typer

from igpt.cli.common import JsonOption, RunArgument, StoreOption, here, print_json, run_of, say


def command(
    run: RunArgument,
    store: StoreOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: ./<run>.html")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """One self-contained HTML page of a pretraining run: loss, probes, samples, provenance.

    Example: igpt-jobs report pretrain-1a2b3c4d -o study.html
    """
    from igpt.report.study import write_report

    found = run_of(run, store)
    page = write_report(found, here() / (output or Path(f"{found.id}.html")))
    if as_json:
        print_json({"run": found.id, "report": str(page)})
    else:
        say(f"wrote {page}")
