"""What the loop tells whoever runs it. The loop itself knows no run."""

from typing import Protocol


class Sink(Protocol):
    """Where metrics and events go, and who says that a newer attempt has taken over.

    Called from the loop's thread; `flush` and `superseded` from the checkpoint writer's too. Every
    rank has one and tells it its progress; rank 0 alone calls the rest. A place that is away for a
    while is no reason to raise, but in `flush` and `superseded`: Unreachable there, and the writer
    asks again.
    """

    def metrics(self, lines: list[dict[str, object]]) -> None:
        """Takes lines in the order of steps; they are durable when `flush` returns."""

    def flush(self) -> None:
        """Returns when all lines so far are durable."""

    def event(self, kind: str, **fields: object) -> None:
        """Records what happened: training, training-resumed, validated, checkpointed."""

    def progress(self, **fields: object) -> None:
        """Overwrites what is shown of this rank: done, total, unit, loss, speed. Often called.

        Apart from `own_data_wait` the ranks say the same, each by its own clock: that is the share
        of time, 0 to 1, that this rank waited for data; `data_wait` is the largest of them.
        """

    def superseded(self) -> bool:
        """Whether a newer attempt has claimed the run."""
