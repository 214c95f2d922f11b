"""`igpt-jobs doctor`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from igpt.cli.common import (
    ClusterOption,
    JsonOption,
    StoreOption,
    console,
    here,
    out,
    print_json,
    say,
    store_of,
)
from igpt.clusters import load_cluster

if TYPE_CHECKING:
    from igpt.clusters.doctor.examine import Examination

#: A failure is not a run's: the cluster or the store cannot be used as it is.
_FAILED = 3
_WORDS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def command(
    cluster: ClusterOption = "local",
    store: StoreOption = None,
    wait: Annotated[
        float, typer.Option("--wait", min=1, help="Seconds to wait for the nodes in the queue.")
    ] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Is this cluster, with this store, fit for a run? What is not, where, and what to do.

    A short job asks every node: software, store, disks, clock, names, ports, a sum over all nodes,
    accelerators. Exit code 0 where nothing failed, 3 where something did. Ctrl-C cancels the job.

    Example: igpt-jobs doctor --cluster slurm --store s3://bucket/study
    """
    root, where = store_of(store), load_cluster(cluster, here())
    from igpt.clusters.doctor.examine import examine

    found = examine(where, root, wait=wait, say=say)
    if as_json:
        print_json(document(found))
    else:
        show(found)
    if found.failed:
        raise typer.Exit(_FAILED)


def document(found: "Examination") -> dict[str, object]:
    """All of it as plain data."""
    return {
        "cluster": found.cluster,
        "store": found.store,
        "failed": found.failed,
        "nodes": [
            {"name": report.name, "address": report.fact("hello").get("address")}
            for report in found.reports
        ],
        "findings": [asdict(finding) for finding in found.findings],
    }


def show(found: "Examination") -> None:
    """A table on a terminal, plain lines elsewhere: each failure with what to do."""
    screen = console()
    if not screen.is_terminal:
        for one in found.findings:
            out(f"{_WORDS[one.level]:<4}  {one.check:<12}  {one.where}: {one.found}")
            if one.mend:
                out(f"{'':<20}to do: {one.mend}")
        return
    table = Table(box=None)
    for heading in ("check", "", "where", "found"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", ""))
    for one in found.findings:
        text = Text(one.found)
        if one.mend:
            text.append(f"\nto do: {one.mend}", "bold" if one.level == "fail" else "")
        table.add_row(one.check, Text(_WORDS[one.level], _STYLES[one.level]), one.where, text)
    screen.print(table)
