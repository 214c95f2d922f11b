"""`python -m benchmarks`: runs the subjects, shows the figures, ends with one JSON document."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Figure
from igpt.config import nearest

SUBJECTS = (
    *("palette", "loader", "sampling", "logistic", "training", "startup", "listing", "restart"),
    "submission",
)
PACKAGES = (
    *("igpt-jobs", "numpy", "scipy", "scikit-learn", "torch", "transformers", "webdataset", "ray"),
)
#: One thread for everybody: the ratios of a machine with other work on it are steadiest so.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    """Measures what was asked for."""
    arguments = _arguments()
    if arguments.list:
        for name in SUBJECTS:
            print(f"{name:10} {_title(name)}")
        return
    os.environ.update(THREADS)  # before anybody imports numpy
    machine = _machine()
    for what, value in machine.items():
        print(f"{what}: {value}", flush=True)
    results = {}
    for name in arguments.names or SUBJECTS:
        print(f"benchmarks: {name} ...", file=sys.stderr, flush=True)
        subject = import_module(f"benchmarks.{name}")
        if hasattr(subject, "absent") and (lack := subject.absent()):
            print(f"benchmarks: {name} is left out: {lack}", file=sys.stderr, flush=True)
            results[name] = []
            continue
        with tempfile.TemporaryDirectory(prefix="igpt-benchmarks-") as folder:
            os.environ["IGPT_CACHE"] = f"{folder}/cache"
            figures = subject.figures(arguments.quick, Path(folder))
        _show(name, figures)
        results[name] = [figure.plain() for figure in figures]
    document = {"quick": arguments.quick, "machine": machine, "figures": results}
    print(json.dumps(document, separators=(",", ":")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a subject; all without any")
    parser.add_argument("--list", action="store_true", help="the subjects, and no measuring")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in SUBJECTS:
            parser.error(f"there is no subject {name!r}{nearest(name, SUBJECTS)}; see --list")
    return arguments


def _title(name: str) -> str:
    """The first line of the subject's docstring, read without importing what it measures."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return text.split("\n", 1)[0].strip('"')


def _machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": f"{THREADS['OMP_NUM_THREADS']} for everybody, no GPU",
        "load": f"{os.getloadavg()[0]:.1f} at the start",
        "python": sys.version.split()[0],
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return os.uname().machine
    return next(_models(lines), os.uname().machine)


def _models(lines: list[str]) -> Iterator[str]:
    return (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def _show(name: str, figures: list[Figure]) -> None:
    """A table on a terminal, else a line for each figure without control characters."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal or "NO_COLOR" in os.environ:
        for figure in figures:
            ours, theirs = figure.absolute(figure.ours), figure.absolute(figure.theirs)
            print(
                f"{name}: {figure.work}: {figure.ratio()}x as fast as {figure.peer} "
                f"({figure.spread()}; {ours} against {theirs})",
                flush=True,
            )
        return
    table = Table(title=f"{name}: {_title(name)}", title_justify="left")
    for column in ("work", "peer"):
        table.add_column(column)
    for column in ("times as fast", "min to max", "ours", "peer's"):
        table.add_column(column, justify="right")
    for figure in figures:
        table.add_row(
            *(figure.work, figure.peer, figure.ratio(), figure.spread()),
            *(figure.absolute(figure.ours), figure.absolute(figure.theirs)),
        )
    console.print(table)


if __name__ == "__main__":
    main()
