"""Checkpoints are written beside training, and again for as long as the store is away."""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from igpt.errors import IgptError, Unreachable
from igpt.model.sealed import SEAL
from igpt.storage import Store
from igpt.storage.patience import PATIENCE_SECONDS, Patience
from igpt.training.checkpoint import Checkpoint, CheckpointRef, Written, prune, save_checkpoint

#: Who is to be killed says so this many seconds before, rather than try once more.
_LAST_SECONDS = 5.0

log = logging.getLogger("igpt")


class CheckpointWriter:
    """Writes checkpoints on a thread of its own, one at a time.

    While the store is away it tries again, for `patience` seconds, and training goes on. What waits
    then gives way to a newer checkpoint, unless it is a milestone. A full disk is not waited for.

    flush: called before each, for what has to be durable when it is committed. counting: lists the
    committed checkpoints on the lineage, for pruning. needs: whether who pinned one still needs it.
    time_left: seconds until this process is killed, where it was asked to stop.
    """

    def __init__(
        self,
        store: Store,
        *,
        attempt: int,
        keep: int,
        milestones: Collection[int],
        superseded: Callable[[], bool],
        counting: Callable[[], Collection[CheckpointRef]],
        needs: Callable[[str], bool] = lambda holder: True,
        flush: Callable[[], None] = lambda: None,
        time_left: Callable[[], float] = lambda: math.inf,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._attempt = attempt
        self._keep = keep
        self._milestones = milestones
        self._superseded = superseded
        self._counting = counting
        self._needs = needs
        self._flush = flush
        self._time_left = time_left
        self._patience = Patience(patience)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._state = threading.Condition()  # guards what follows
        self._queue: list[Checkpoint] = []
        self._done: list[Written] = []
        self._error: Exception | None = None
        self._busy = False
        self._away = False  # the store was, at the last try
        self._closed = False
        self._tries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._thread.shutdown(wait=True)  # what is being written now is let finish

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, or waits for the store."""
        return self._busy

    @property
    def tries(self) -> int:
        """How often the store was found to be away: a sign of life while one waits for it."""
        return self._tries

    def start(self, checkpoint: Checkpoint) -> None:
        """Begins to write it, once the one in flight is done; it waits for none that is retried.

        Its failure shows in `take`.
        """
        with self._state:
            self._state.wait_for(lambda: not self._busy or self._away)
            if self._error is not None:
                return
            self._queue = [one for one in self._queue if one.step in self._milestones]
            self._queue.append(checkpoint)
            self._state.notify_all()
            if not self._busy:
                self._busy = True
                self._thread.submit(self._drain)

    def settle(self, seconds: float) -> bool:
        """Waits at most so long until nothing is being written; whether that is so."""
        with self._state:
            return self._state.wait_for(lambda: not self._busy, seconds)

    def take(self) -> list[Written]:
        """What has been written since the last call. Raises what went wrong in writing."""
        with self._state:
            if self._error is not None:
                raise self._error
            done, self._done = self._done, []
            return done

    def _drain(self) -> None:
        while True:
            with self._state:
                if not self._queue:
                    self._busy = False
                    self._state.notify_all()
                    return
                checkpoint = self._queue.pop(0)
            try:
                written = self._insist(checkpoint)
            except Exception as error:
                with self._state:
                    self._error = error
                    self._queue.clear()
            else:
                with self._state:
                    self._done += [written] if written else []

    def _insist(self, checkpoint: Checkpoint) -> Written | None:
        """Writes it as soon as the store is there; None where it gave way to a newer one."""
        again = False
        while True:
            try:
                written = self._write(checkpoint, again=again)
            except Unreachable as error:
                pause = self._patience.pause(error)
                log.warning("the checkpoint of step %d waits: %s", checkpoint.step, error)
                if not self._rest(pause, checkpoint, error):
                    return None
                again = True
            else:
                self._patience.reset()
                with self._state:
                    self._away = False
                return written

    def _rest(self, seconds: float, checkpoint: Checkpoint, error: Unreachable) -> bool:
        """Waits until the next try; False where there is a newer checkpoint to try instead.

        Raises the error where nobody has the time to wait any more.
        """
        until = time.monotonic() + seconds
        with self._state:
            self._away = True
            self._tries += 1
            self._state.notify_all()
            while True:
                if self._queue and checkpoint.step not in self._milestones:
                    return False
                if self._closed or self._time_left() < _LAST_SECONDS:
                    raise error
                if (left := until - time.monotonic()) <= 0:
                    return True
                self._state.wait(min(left, 1.0))

    def _write(self, checkpoint: Checkpoint, *, again: bool) -> Written:
        ref = CheckpointRef(checkpoint.step, self._attempt)
        if again and self._superseded():
            self._take_back(ref)  # the try before may have sealed it
            return Written(ref, committed=False, seconds=0.0, bytes=0)
        self._flush()
        written = save_checkpoint(self._store, checkpoint, self._attempt, self._superseded)
        if not written.committed:
            return written
        if self._superseded():
            # The newer attempt came between the question and the commit. Nothing is dropped on its
            # behalf.
            if self._take_back(ref):
                return Written(ref, committed=False, seconds=written.seconds, bytes=written.bytes)
            return written
        try:
            prune(
                self._store,
                self._counting(),
                attempt=self._attempt,
                keep=self._keep,
                milestones=self._milestones,
                needs=self._needs,
            )
        except (IgptError, OSError) as error:  # the next one does it
            log.warning("older checkpoints are not dropped now: %s", error)
        return written

    def _take_back(self, ref: CheckpointRef) -> bool:
        """Unseals what a newer attempt did not start from: it is on nobody's history."""
        if ref in self._counting():
            return False
        self._store.delete([f"{ref.key}/{SEAL}"])
        return True
