"""The order in which training sees its samples: a pure function, with one integer of state.

Position p of the stream belongs to epoch p // N, and batch k is the positions [kB, (k+1)B). Each
epoch is a permutation of all N samples, so each sample is seen exactly once in it, and the tail of
an epoch runs on into the next inside a batch. Rank r of W takes the rows floor(rB/W) to
floor((r+1)B/W) of a batch, so the batches are the same for every number of workers.

For locality the shards, permuted anew in each epoch, are laid end to end and shared out among the
C lanes of a batch (row j belongs to lane jC // B): each lane owns a contiguous share, as long as
the number of rows that it has in the epoch, and is shuffled in windows inside it. C divides B and
knows nothing of W. A set no larger than one window is shuffled whole. Any position is found in
O(1): only the permutations of the windows at hand are kept.

This module needs no torch. What it computes is frozen by a test: a change of it would change the
batches of runs that are under way.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from igpt.data.randomness import permutation
from igpt.errors import UserError

#: Samples that are shuffled together inside a lane.
WINDOW = 65_536
_MOST_LANES = 64


def lanes(global_batch: int, samples: int, window: int = WINDOW) -> int:
    """C: the largest divisor of the batch that is at most min(64, ceil(samples / window))."""
    most = min(_MOST_LANES, -(-samples // window))
    return max(c for c in range(1, most + 1) if global_batch % c == 0)


def rank_share(global_batch: int, rank: int, world_size: int) -> tuple[int, int]:
    """The rows [first, end) of a batch that are `rank`'s. Raises UserError where it gets none."""
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is not one of {world_size} workers")
    if world_size > global_batch:
        raise UserError(
            f"{world_size} workers share a global batch of {global_batch} rows",
            expected="at most as many workers as rows, so that each has one",
        )
    return rank * global_batch // world_size, (rank + 1) * global_batch // world_size


class Order:
    """The batches of one split of one data set, for one seed and one global batch.

    `shards` are the samples of each shard, in the order of the index; samples are numbered through
    them. `digest` is that of the index: another data set has another order.
    """

    def __init__(
        self,
        shards: Sequence[int],
        *,
        global_batch: int,
        seed: int,
        digest: str,
        window: int = WINDOW,
    ) -> None:
        self.samples = sum(shards)
        if self.samples < 1:
            raise UserError("there are no samples to put in order")
        if global_batch < 1:
            raise UserError(f"a global batch of {global_batch} rows cannot be")
        self.global_batch = global_batch
        self.lanes = lanes(global_batch, self.samples, window)
        self._key = (seed, digest)
        self._window = window
        self._shards = np.array(shards, dtype=np.int64)
        self._starts = np.cumsum(self._shards) - self._shards
        # A batch may turn to the next window in each lane, and the loader looks ahead of it.
        self._permutation = lru_cache(3 * self.lanes + 4)(permutation)

    def rows(self, step: int) -> NDArray[np.int64]:
        """The sample numbers of batch `step`, int64 [B]."""
        return self.rank_rows(step, 0, 1)

    def rank_rows(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """The sample numbers of the rows of batch `step` that are `rank`'s, int64 [rows]."""
        if step < 0:
            raise ValueError(f"step {step} is before the first batch")
        first, end = rank_share(self.global_batch, rank, world_size)
        width = self.global_batch // self.lanes
        found = np.empty(end - first, np.int64)
        row = first
        while row < end:  # one lane of one epoch at a time
            position = step * self.global_batch + row
            epoch = position // self.samples
            left = (epoch + 1) * self.samples - position
            stop = min(end, (row // width + 1) * width, row + left)
            found[row - first : stop - first] = self._lane_rows(
                epoch, row // width, position, stop - row
            )
            row = stop
        return found

    def _lane_rows(self, epoch: int, lane: int, position: int, count: int) -> NDArray[np.int64]:
        """The samples of `count` positions from `position` on, all of this epoch and lane."""
        begin, end = epoch * self.samples, (epoch + 1) * self.samples
        # The rows of lanes 0..lane-1 in this epoch come first in the permuted sequence.
        start = self._rows_below(end, lane) - self._rows_below(begin, lane)
        length = self._rows_below(end, lane + 1) - self._rows_below(begin, lane + 1) - start
        place = self._rows_of(position, lane) - self._rows_of(begin, lane)
        places = np.arange(place, place + count)
        for number in range(place // self._window, (place + count - 1) // self._window + 1):
            base = number * self._window
            size = min(self._window, length - base)
            shuffled = self._permutation(size, "window", *self._key, epoch, lane, number)
            inside = places // self._window == number
            places[inside] = base + shuffled[places[inside] - base]
        return self._samples_at(epoch, start + places)

    def _rows_of(self, position: int, lane: int) -> int:
        """How many positions before this one are rows of `lane`."""
        batches, row = divmod(position, self.global_batch)
        width = self.global_batch // self.lanes
        return batches * width + min(max(row - lane * width, 0), width)

    def _rows_below(self, position: int, lane: int) -> int:
        """How many positions before this one are rows of the lanes before `lane`."""
        batches, row = divmod(position, self.global_batch)
        width = self.global_batch // self.lanes * lane
        return batches * width + min(row, width)

    def _samples_at(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample numbers at `places` of the epoch's shards laid end to end."""
        shards = self._permutation(len(self._shards), "shards", *self._key, epoch)
        ends = np.cumsum(self._shards[shards])
        which = np.searchsorted(ends, places, side="right")
        shard = shards[which]
        return self._starts[shard] + places - (ends[which] - self._shards[shard])
