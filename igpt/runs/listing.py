"""All runs of a store by two listings: the hints in `index/`, and the names below `runs/`.

A hint is the name of an empty object, `index/<run>.<time>.<state>`. It may lag behind: a run whose
supervisor died still says "running". So the state of what should be alive is taken from its record.
A run without a hint is one whose client died in the middle of its submission.
"""

from dataclasses import dataclass
from datetime import datetime

from igpt.runs.state import RunState
from igpt.storage import Store


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


def _seconds(stamp: str) -> float:
    """The inverse of `events.timestamp`. Raises ValueError."""
    if not stamp.endswith("Z"):
        raise ValueError(f"{stamp!r} is not a time in UTC")
    return datetime.fromisoformat(stamp).timestamp()  # much faster than strptime
