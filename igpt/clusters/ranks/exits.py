"""How the ranks of each node ended, said in the record for whoever settles the attempt.

The name of the object says whether they ended badly, so that the parents of other ranks see it in
a listing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from igpt.errors import NotFound
from igpt.runs import Run
from igpt.runs.failures import FailureClass, RankExit
from igpt.runs.reading import read_json


def exits_name(node: int, *, bad: bool) -> str:
    """In an attempt's folder: how a node's ranks ended; the name tells the others whether badly."""
    return f"exits-{node:04d}-{'bad' if bad else 'good'}.json"


def exits_key(attempt: int, node: int, *, bad: bool) -> str:
    """Where a node says how its ranks ended."""
    return f"attempts/{attempt:04d}/{exits_name(node, bad=bad)}"


def write_exits(run: Run, attempt: int, node: int, exits: Sequence[RankExit], *, bad: bool) -> None:
    """Says how the ranks of a node ended."""
    body = json.dumps({"exits": [asdict(one) for one in exits]}).encode()
    run.record.put(exits_key(attempt, node, bad=bad), body)


def read_exits(run: Run, attempt: int, node: int) -> list[RankExit] | None:
    """How the ranks of a node ended; None where it did not say."""
    for bad in (True, False):
        try:
            said = read_json(run.record, exits_key(attempt, node, bad=bad))
        except NotFound:
            continue
        return [
            RankExit(**{**one, "failure": one["failure"] and FailureClass(one["failure"])})
            for one in said["exits"]
        ]
    return None
