"""When a checkpoint is due, and how all ranks learn what became of one."""

import time
from collections.abc import Callable

import torch

from igpt.errors import PeerFailed
from igpt.training.agreement import Flags, agree_on
from igpt.training.checkpoint import Checkpoint
from igpt.training.config import CheckpointConfig
from igpt.training.reporting import Reporter
from igpt.training.writer import CheckpointWriter

#: The ranks meet this often while the last checkpoint is written.
_MEETING_SECONDS = 5.0


class Saver:
    """The checkpoints of one call of `train`. Rank 0 writes; every rank has one of these."""

    def __init__(
        self,
        writer: CheckpointWriter,
        settings: CheckpointConfig,
        reporter: Reporter,
        *,
        rank: int,
        device: torch.device,
    ) -> None:
        self._writer = writer
        self._settings = settings
        self._reporter = reporter
        self._rank = rank
        self._device = device
        self._saved_at = time.monotonic()

    def wants(self, step: int) -> bool:
        """Whether a checkpoint is due after this step, by its number."""
        every = self._settings.every_steps
        return step in self._settings.milestones or (every is not None and step % every == 0)

    def is_due(self) -> bool:
        """Whether the time for a checkpoint has come, by rank 0's clock."""
        minutes = self._settings.every_minutes
        if self._rank != 0 or minutes is None or self._writer.busy:
            return False
        return time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, capture: Callable[[], Checkpoint]) -> None:
        """Hands a copy to the writer, which first makes all metrics up to here durable."""
        self._saved_at = time.monotonic()
        if self._rank == 0:
            self._writer.start(capture())

    def landed(self) -> tuple[bool, Exception | None]:
        """Notes the checkpoints that are done: whether one found a newer attempt, or failed."""
        try:
            done = self._writer.take()
        except Exception as error:  # the other ranks are told before it is raised
            return False, error
        for written in done:
            if written.committed:
                self._reporter.checkpointed(written)
        return not all(written.committed for written in done), None

    def finish(self) -> bool:
        """Waits until the last checkpoint is written; whether one found a newer attempt.

        The ranks meet every few seconds meanwhile: a store that is away may take longer than they
        may wait for each other.
        """
        tries = self._writer.tries
        while True:
            writing = not self._writer.settle(_MEETING_SECONDS)
            superseded, error = self.landed()
            mine = Flags(superseded=superseded, failed=error is not None, writing=writing)
            flags = agree_on(mine, self._device)
            raise_together(flags, error)
            if flags.superseded or not flags.writing:
                return flags.superseded
            if self._writer.tries > tries:  # no step is made, and yet nothing hangs
                tries = self._writer.tries
                self._reporter.alive()


def raise_together(flags: Flags, error: Exception | None) -> None:
    """Ends every rank where one cannot go on."""
    if error is not None:
        raise error
    if flags.failed:
        raise PeerFailed("rank 0 could not write a checkpoint; its own log says why")
