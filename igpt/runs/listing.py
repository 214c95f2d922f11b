"""All runs of a store by two listings: the hints in `index/`, and the names below `runs/`.

A hint is the name of an empty object, `index/<run>.<time>.<state>`. It may lag behind: a run whose
supervisor died still says "running". So the state of what should be alive is taken from its record.
A run without a hint is one whose client died in the middle of its submission.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from igpt.errors import DataCorrupt
from igpt.runs.record import Run, open_run
from igpt.runs.state import RunState
from igpt.storage import Store

_SIDE_BY_SIDE = 16  # requests at once to a store behind a network


@dataclass(frozen=True)
class Hint:
    """What the index says of a run."""

    run: str
    state: RunState
    submitted: float  # seconds since the epoch
    changed: float


def list_hints(root: Store) -> list[Hint]:
    """The hint of every run, the newest run first."""
    found: dict[str, list[tuple[float, RunState]]] = {}
    for name in root.children("index"):
        run, _, rest = name.partition(".")
        stamp, _, state = rest.rpartition(".")
        try:
            change = (_seconds(stamp), RunState(state))
        except ValueError:
            continue  # not a hint: something else that fell into the folder
        found.setdefault(run, []).append(change)
    hints = []
    for run, changes in found.items():
        newest = max(changes)
        hints.append(Hint(run, newest[1], min(changes)[0], newest[0]))
    for run in set(root.children("runs")) - found.keys():
        hints += [
            Hint(run, RunState.SUBMITTED, spec.modified, spec.modified)
            for spec in root.objects(f"runs/{run}/spec.yaml")
        ]
    return sorted(hints, key=lambda hint: hint.submitted, reverse=True)


def finished_runs(root: Store) -> list[Run]:
    """The runs that have finished, the one that finished last first.

    A hint of how a run ended is believed. Of the others, also where the index is missing, the
    record is asked: a worker may die between its result and its hint.
    """
    hints = list_hints(root)
    found = [(hint.changed, hint.run) for hint in hints if hint.state is RunState.FINISHED]
    unclear = [hint.run for hint in hints if hint.state.active]
    near = root.local_path("runs") is not None
    with ThreadPoolExecutor(1 if near else _SIDE_BY_SIDE) as pool:
        times = pool.map(lambda run: _finished_at(open_run(root, run)), unclear)
        found += [(time, run) for time, run in zip(times, unclear, strict=True) if time is not None]
    return [open_run(root, run) for _, run in sorted(found, reverse=True)]


def _finished_at(run: Run) -> float | None:
    """When a run finished, in seconds since the epoch; None where it has not."""
    try:
        result = run.result()
    except DataCorrupt:  # one damaged record must not hide all others
        return None
    return None if result is None else float(result.get("time", 0.0))


def _seconds(stamp: str) -> float:
    """The inverse of `events.timestamp`. Raises ValueError."""
    if not stamp.endswith("Z"):
        raise ValueError(f"{stamp!r} is not a time in UTC")
    return datetime.fromisoformat(stamp).timestamp()  # much faster than strptime
