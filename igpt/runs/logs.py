"""The output of a run's ranks, in the pieces in which its parent process shipped it."""

from collections.abc import Iterator
from dataclasses import dataclass

from igpt.storage import Store


@dataclass(frozen=True, order=True)
class LogPart:
    """One shipped piece of one rank's output."""

    attempt: int
    rank: int
    part: int
    key: str


def log_key(attempt: int, rank: int, part: int) -> str:
    """Where a piece stands."""
    return f"attempts/{attempt:04d}/logs/{rank:05d}-{part:06d}.log"


def log_parts(run: Store, attempt: int) -> list[LogPart]:
    """The pieces of one attempt, by rank, in the order in which they were written."""
    folder = f"attempts/{attempt:04d}/logs"
    parts = []
    for name in run.children(folder):
        rank, _, part = name.removesuffix(".log").partition("-")
        parts.append(LogPart(attempt, int(rank), int(part), f"{folder}/{name}"))
    return sorted(parts)


def new_lines(
    run: Store, attempt: int, seen: set[str], rank: int | None = None
) -> Iterator[tuple[int, str]]:
    """(rank, line) of the pieces not in `seen`, which grows by them."""
    for part in log_parts(run, attempt):
        if part.key in seen or (rank is not None and part.rank != rank):
            continue
        seen.add(part.key)
        for line in run.get(part.key).decode(errors="replace").splitlines():
            yield part.rank, line
