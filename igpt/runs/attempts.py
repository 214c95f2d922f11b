"""Which attempt owns a run, and which checkpoints and metrics count.

Attempt n owns the run once it has created `attempts/<n>/claim.json`, which only one process can do.
The claim names the checkpoint it starts from. From the claims alone follows what counts: whatever
attempt m made at a step beyond the start of a later attempt is not on the lineage, however late it
was written. So nothing depends on a check and a write being one act.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from igpt.errors import DataCorrupt
from igpt.runs.reading import read_json, read_json_lines
from igpt.storage import Store


@dataclass(frozen=True)
class Claim:
    """An attempt's right to the run. `start_step` 0 with no `start_attempt` is a fresh start."""

    attempt: int
    launch: str  # a random word of the launch: tells the ranks of one launch from another's
    host: str
    workers: int
    time: float
    start_step: int = 0
    start_attempt: int | None = None  # whose checkpoint of `start_step` it starts from


def claim_key(attempt: int) -> str:
    """Where the claim of an attempt stands."""
    return f"attempts/{attempt:04d}/claim.json"


def claim(run: Store, wanted: Claim) -> bool:
    """Claims the attempt; False where another process has it already."""
    return run.create(claim_key(wanted.attempt), json.dumps(asdict(wanted), indent=1).encode())


def read_claim(run: Store, attempt: int) -> Claim:
    """The claim of an attempt. Raises NotFound where it was never claimed."""
    try:
        return Claim(**read_json(run, claim_key(attempt)))
    except TypeError as error:
        raise DataCorrupt(f"{run.uri}/{claim_key(attempt)} is damaged: {error}") from None


def attempt_numbers(run: Store) -> list[int]:
    """Every attempt that has a folder, claimed or not."""
    return sorted(int(name) for name in run.children("attempts") if name.isdecimal())


def read_claims(run: Store) -> list[Claim]:
    """All claims, in the order of attempts."""
    return [
        read_claim(run, number) for number in attempt_numbers(run) if run.exists(claim_key(number))
    ]


def superseded(run: Store, attempt: int) -> bool:
    """Whether a later attempt has claimed the run."""
    return any(
        number > attempt and run.exists(claim_key(number)) for number in attempt_numbers(run)
    )


def on_lineage(claims: Sequence[Claim], attempt: int, step: int) -> bool:
    """Whether what `attempt` made at `step` is part of the run's one history."""
    return all(later.start_step >= step for later in claims if later.attempt > attempt)


def newest(claims: Sequence[Claim], committed: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The (step, attempt) to start from: the furthest committed checkpoint on the lineage."""
    counting = [(step, attempt) for step, attempt in committed if on_lineage(claims, attempt, step)]
    return max(counting, default=None)


def merge_metrics(
    claims: Sequence[Claim], lines: dict[int, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The metrics of the run's one history: each attempt's lines up to where a later one started.

    lines: for each attempt its lines, each with an integer `step`. Returned in the order of steps,
    no step twice for lines of one kind.
    """
    merged = [
        line | {"attempt": attempt}
        for attempt, own in lines.items()
        for line in own
        if on_lineage(claims, attempt, int(line["step"]))
    ]
    return sorted(merged, key=lambda line: (line["step"], "validation_loss" in line))


def read_metrics(run: Store) -> list[dict[str, Any]]:
    """The merged metrics of a run, in the order of steps."""
    lines: dict[int, list[dict[str, Any]]] = {}
    for number in attempt_numbers(run):
        folder = f"attempts/{number:04d}"
        parts = [name for name in run.children(folder) if name.startswith("metrics-")]
        lines[number] = [
            line for part in sorted(parts) for line in read_json_lines(run, f"{folder}/{part}")
        ]
    return merge_metrics(read_claims(run), lines)
