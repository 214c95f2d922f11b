"""Batches for one worker, read ahead of the training loop.

    loader = Loader(data, split="train", global_batch=128, rank=0, world_size=1, seed=0)
    for step, tokens, labels in loader: ...

Which rows a batch has is `igpt.data.order`; what they hold is `igpt.data.dataset`. The state of a
loader is one integer: `start_step`.
"""

import hashlib
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event, main_thread
from typing import Self

import numpy as np
from numpy.typing import NDArray

from igpt.data.dataset import Dataset
from igpt.data.order import Order, rank_share

Batch = tuple[int, NDArray[np.uint16], NDArray[np.int64]]

_READ_AHEAD = 4  # batches
_FETCH_AHEAD = 256  # batches between the start of a shard's fetching and its use


class Loader:
    """An endless iterator over `(step, tokens uint16 [rows, positions], labels int64 [rows])`.

    The rows are this rank's of global batch `step`; `first_row` is the place of the first of them
    in that batch. Labels of -1 mean none. One thread reads a few batches ahead and another fetches
    shards that are not on this machine; they end with `close`, with the `with` block, or with the
    loader. What goes wrong in reading is raised by `next`.

    Raises UserError where there are more workers than rows in a batch.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        split: str,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_step: int = 0,
    ) -> None:
        shards = [shard.samples for shard in data.index.split(split).shards]
        order = Order(shards, global_batch=global_batch, seed=seed, digest=data.digest)
        self.first_row, _ = rank_share(global_batch, rank, world_size)
        self._rows = _Rows(data, split, order, rank, world_size)
        self._next = start_step  # the next batch to be asked for
        self._ahead: deque[Future[Batch]] = deque()
        self._reading = ThreadPoolExecutor(1, "igpt-loader-read")
        self._fetching = ThreadPoolExecutor(1, "igpt-loader-fetch")
        self._fetched = start_step  # the shards of earlier batches are here or on their way
        self._threads = (self._reading, self._fetching)
        self._end = weakref.finalize(self, _end, self._rows, self._threads, wait=False)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self._end.alive:
            raise ValueError("the loader is closed")
        try:
            while len(self._ahead) < _READ_AHEAD:
                self._ask_for(self._next)
                self._next += 1
            return self._ahead.popleft().result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the threads; what they are reading now is let finish."""
        self._end.detach()
        _end(self._rows, self._threads, wait=True)

    def _ask_for(self, step: int) -> None:
        self._ahead.append(self._reading.submit(self._rows.read, step))
        if self._rows.data.remote:
            # A shard that cannot be fetched now is asked for again, and then raised, by its batch.
            self._fetching.submit(self._rows.fetch, self._fetched, step + _FETCH_AHEAD)
            self._fetched = step + _FETCH_AHEAD

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Rows:
    """What the threads work on: it knows nothing of the loader, so that the loader can go."""

    data: Dataset
    split: str
    order: Order
    rank: int
    world_size: int
    stop: Event = field(default_factory=Event)

    def read(self, step: int) -> Batch:
        rows = self.order.rank_rows(step, self.rank, self.world_size)
        return step, *self.data.read(self.split, rows)

    def fetch(self, start: int, end: int) -> None:
        for step in range(start, end):
            if self.stop.is_set() or not main_thread().is_alive():  # the program ends
                return
            self.data.fetch(self.split, self.order.rank_rows(step, self.rank, self.world_size))


def _end(rows: _Rows, threads: tuple[ThreadPoolExecutor, ...], *, wait: bool) -> None:
    rows.stop.set()
    for pool in threads:
        pool.shutdown(wait=wait, cancel_futures=True)


def row_digest(first_row: int, tokens: NDArray[np.uint16]) -> int:
    """A digest of `tokens` uint16 [rows, positions] that begin at row `first_row` of a batch.

    The sum modulo 2^64 of a keyed hash of each row, whose key is the row's place. So the digests of
    all ranks add up, modulo 2^64, to the same number however the batch is shared out.
    """
    total = 0
    for row, content in enumerate(np.ascontiguousarray(tokens, dtype="<u2"), start=first_row):
        hashed = hashlib.blake2b(content, digest_size=8, key=row.to_bytes(8, "little"))
        total += int.from_bytes(hashed.digest(), "little")
    return total % 2**64
