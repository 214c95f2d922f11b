"""What the loop tells whoever runs it. The loop itself knows no run."""

from typing import Protocol


class Sink(Protocol):
    """Where metrics and events go, and who says that a newer attempt has taken over.

    Rank 0 alone calls it, from the loop's thread; `superseded` from the checkpoint writer's too.
    """

    def metrics(self, lines: list[dict[str, object]]) -> None:
        """Takes lines in the order of steps; they are durable when `flush` returns."""

    def flush(self) -> None:
        """Returns when all lines so far are durable."""

    def event(self, kind: str, **fields: object) -> None:
        """Records what happened: training, training-resumed, validated, checkpointed."""

    def progress(self, **fields: object) -> None:
        """Overwrites what is shown: done, total, unit, loss, speed. Often called."""

    def superseded(self) -> bool:
        """Whether a newer attempt has claimed the run."""
