"""How long the command line takes to answer: against an empty Python, and against `ray --help`.

`igpt-jobs --help`, and `igpt-jobs list` of a store that holds 200 finished runs, each as a process
of its own. There is no common answer to compare; ours must name every verb and every run, and the
peers must end well. `python -c pass` is the floor: no command of this environment can be faster.

Predicted, after one look at both --help: 0.15 times as fast as an empty Python and 9 times as fast
as `ray --help`; `list`, which reads a store, 0.08 times and 4 times.
"""

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from benchmarks.harness import Figure, compare, timed
from igpt.cli.app import VERBS
from igpt.storage import Store, open_store

RUNS = 200


def figures(quick: bool, folder: Path) -> list[Figure]:
    """The two commands."""
    store = open_store(str(folder / "store"))
    runs = _finished_runs(store, 3 if quick else RUNS)
    scripts = Path(sys.executable).parent
    helping = [str(scripts / "igpt-jobs"), "--help"]
    listing = [str(scripts / "igpt-jobs"), "list", "--store", store.uri]
    peers = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "ray --help": [str(scripts / "ray"), "--help"],
    }

    answer = _run(helping)
    assert all(verb in answer for verb in VERBS)
    answer = _run(listing)
    assert all(run in answer for run in runs)
    return [
        figure
        for work, command in (("--help", helping), (f"list of {len(runs)} runs", listing))
        for figure in compare(
            f"igpt-jobs {work}",
            timed(partial(_run, command)),
            {name: timed(partial(_run, peer)) for name, peer in peers.items()},
            rounds=1 if quick else 11,
        )
    ]


def _run(command: Sequence[str]) -> str:
    """What the command prints; it must end well."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _finished_runs(store: Store, count: int) -> list[str]:
    """The names of runs, of which the store has what `list` reads: two hints each."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    names = [f"pretrain-{number:08x}" for number in range(count)]
    for number, name in enumerate(names):
        for minutes, state in ((0, "submitted"), (30, "finished")):
            time = began + timedelta(hours=number, minutes=minutes)
            store.put(f"index/{name}.{time:%Y%m%dT%H%M%S.%f}Z.{state}", b"")
    return names
