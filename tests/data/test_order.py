"""The order of training: every epoch exact, the same for any number of workers, frozen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.data.order import Order, lanes, rank_share
from igpt.errors import UserError

shard_sizes = st.lists(st.integers(1, 20), min_size=1, max_size=12)
batches = st.integers(1, 48)
windows = st.integers(1, 30)


def an_order(shards: list[int], global_batch: int, window: int = 8, seed: int = 0) -> Order:
    return Order(shards, global_batch=global_batch, seed=seed, digest="d" * 64, window=window)


@settings(max_examples=150, deadline=None)
@given(shard_sizes, batches, windows)
def test_each_epoch_holds_each_sample_exactly_once(
    shards: list[int], global_batch: int, window: int
) -> None:
    order = an_order(shards, global_batch, window)
    samples = sum(shards)
    steps = -(-3 * samples // global_batch)
    stream = np.concatenate([order.rows(step) for step in range(steps)])
    for epoch in range(3):
        part = stream[epoch * samples : (epoch + 1) * samples]
        assert np.array_equal(np.sort(part), np.arange(samples))


@settings(max_examples=150, deadline=None)
@given(shard_sizes, batches, windows, st.integers(0, 10**12), st.data())
def test_the_ranks_rows_are_the_batch_for_any_world_size(
    shards: list[int], global_batch: int, window: int, step: int, data: st.DataObject
) -> None:
    world_size = data.draw(st.integers(1, global_batch))
    whole = an_order(shards, global_batch, window).rows(step)
    parts = [
        an_order(shards, global_batch, window).rank_rows(step, rank, world_size)
        for rank in range(world_size)
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert min(map(len, parts)) >= 1


def test_seeking_finds_the_batch_that_walking_reaches() -> None:
    walked = an_order([7, 9, 4], 6)
    rows = [walked.rows(step) for step in range(40)]
    for step in (39, 3, 17, 0):
        assert np.array_equal(an_order([7, 9, 4], 6).rows(step), rows[step])


def test_epochs_seeds_and_data_sets_differ() -> None:
    first, second = (an_order([50], 50).rows(step) for step in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, an_order([50], 50, seed=1).rows(0))
    other = Order([50], global_batch=50, seed=0, digest="e" * 64, window=8)
    assert not np.array_equal(first, other.rows(0))


def test_one_sample_fills_every_row() -> None:
    assert an_order([1], 5).rows(3).tolist() == [0] * 5


def test_a_batch_larger_than_the_set_holds_whole_epochs() -> None:
    rows = an_order([3, 2], 12, window=100).rows(0)
    assert np.array_equal(np.sort(rows[:5]), np.arange(5))
    assert np.array_equal(np.sort(rows[5:10]), np.arange(5))


def test_lanes_divide_the_batch_and_small_sets_have_one() -> None:
    assert lanes(128, 65_536) == 1
    assert lanes(128, 65_537) == 2
    assert lanes(128, 10**9) == 64
    assert lanes(96, 10**9) == 48
    assert lanes(127, 10**9) == 1


def test_a_small_set_is_shuffled_whole() -> None:
    rows = an_order([100] * 10, 1000, window=1000).rows(0)
    # A window of one shard would leave the first tenth within one shard of 100.
    assert len(np.unique(rows[:100] // 100)) > 5


def test_a_worker_needs_only_its_share_of_the_shards_in_an_epoch() -> None:
    order = an_order([64] * 64, 16, window=64)
    assert order.lanes == 16
    steps = range(64 * 64 // 16)
    rows = np.concatenate([order.rank_rows(step, 2, 8) for step in steps])
    assert len(np.unique(rows // 64)) <= 64 // 8 + 2


def test_a_lane_draws_from_one_window_at_a_time() -> None:
    order = an_order([64] * 64, 16, window=64)
    lane = np.array([order.rows(step)[0] for step in range(64)])
    assert len(np.unique(lane // 64)) <= 2
    assert not np.array_equal(lane, np.sort(lane))


def test_the_order_never_changes() -> None:
    # Frozen: if this fails, runs under way would see other batches. Do not mend the numbers.
    order = Order([5, 7, 3], global_batch=4, seed=3, digest="ab" * 32, window=6)
    assert order.lanes == 2
    assert [order.rows(step).tolist() for step in (0, 1, 3, 1_000_000)] == [
        [4, 5, 13, 12],
        [2, 0, 10, 9],
        [7, 6, 14, 2],
        [5, 8, 4, 3],
    ]
    default = Order([70_000, 1_000], global_batch=6, seed=0, digest="cd" * 32)
    assert default.rows(123_456).tolist() == [14733, 7507, 23727, 55156, 62318, 49636]


def test_more_workers_than_rows_are_refused() -> None:
    with pytest.raises(UserError, match="9 workers share a global batch of 8"):
        rank_share(8, 0, 9)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_world_is_refused(rank: int) -> None:
    with pytest.raises(UserError, match="not one of 4 workers"):
        rank_share(8, rank, 4)


def test_no_samples_or_no_rows_are_refused() -> None:
    with pytest.raises(UserError, match="no samples"):
        an_order([0], 4)
    with pytest.raises(UserError, match="global batch of 0"):
        an_order([4], 0)
