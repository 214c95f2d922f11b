"""The loader: batches of the order, read ahead, and threads that end."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from igpt.data import Loader, Order, open_dataset, row_digest, write_shards
from igpt.data.dataset import Dataset
from igpt.errors import DataCorrupt, UserError
from igpt.storage import open_store
from tests.data.examples import Remote, a_palette, a_source


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 90 + 10 + 25 samples in shards of 20."""
    where = tmp_path_factory.mktemp("loader") / "set"
    write_shards(a_source(), where, resolution=8, palette=a_palette(), samples_per_shard=20)
    return where


@pytest.fixture
def data(where: Path) -> Dataset:
    return open_dataset(where)


def loader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("igpt-loader")]


def test_batches_are_those_of_the_order(data: Dataset) -> None:
    sizes = [shard.samples for shard in data.index.split("train").shards]
    order = Order(sizes, global_batch=16, seed=5, digest=data.digest)
    with Loader(data, split="train", global_batch=16, seed=5) as loader:
        for expected in range(20):  # more than three epochs
            step, tokens, labels = next(loader)
            assert step == expected
            rows = order.rows(step)
            assert np.array_equal(tokens, data.tokens("train", rows))
            assert np.array_equal(labels, data.labels("train")[rows])
            assert tokens.dtype == np.uint16
            assert labels.dtype == np.int64


@pytest.mark.parametrize("world_size", [2, 3, 5, 16])
def test_the_ranks_share_out_the_same_batch(data: Dataset, world_size: int) -> None:
    def batch(rank: int, size: int) -> tuple[int, NDArray[np.uint16]]:
        with Loader(
            data, split="train", global_batch=16, rank=rank, world_size=size, start_step=9
        ) as loader:
            step, tokens, _ = next(loader)
            assert step == 9
            return loader.first_row, tokens

    _, whole = batch(0, 1)
    digest = 0
    for rank in range(world_size):
        first, tokens = batch(rank, world_size)
        assert np.array_equal(tokens, whole[first : first + len(tokens)])
        digest += row_digest(first, tokens)
    assert digest % 2**64 == row_digest(0, whole)


def test_a_start_step_resumes_where_the_last_loader_stopped(data: Dataset) -> None:
    with Loader(data, split="train", global_batch=7) as loader:
        walked = [next(loader)[1] for _ in range(6)]
    with Loader(data, split="train", global_batch=7, start_step=5) as loader:
        assert np.array_equal(next(loader)[1], walked[5])


def test_more_workers_than_rows_are_refused(data: Dataset) -> None:
    with pytest.raises(UserError, match="5 workers share a global batch of 4"):
        Loader(data, split="train", global_batch=4, rank=0, world_size=5)


def test_threads_end_when_the_loader_is_closed(data: Dataset) -> None:
    loader = Loader(data, split="train", global_batch=4)
    next(loader)
    mine = loader_threads()
    assert mine
    loader.close()
    assert not any(thread.is_alive() for thread in mine)
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_threads_end_when_the_loader_is_dropped(data: Dataset) -> None:
    loader = Loader(data, split="train", global_batch=4)
    next(iter(loader))
    mine = loader_threads()
    assert mine
    del loader
    gc.collect()
    for thread in mine:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in mine)


def test_what_goes_wrong_in_a_thread_is_raised_and_the_loader_is_closed(
    where: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "set"
    write_shards(a_source(), damaged, resolution=8, palette=a_palette(), samples_per_shard=20)
    for path in damaged.glob("train-*.tar"):
        path.write_bytes(b"\0" * path.stat().st_size)
    loader = Loader(open_dataset(damaged), split="train", global_batch=4)
    with pytest.raises(DataCorrupt, match="train-"):
        next(loader)
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_shards_are_fetched_before_their_rows_are_asked_for(where: Path) -> None:
    here = threading.Event()

    class Watched(Remote):
        def download(self, key: str, path: Path) -> None:
            super().download(key, path)
            if len(set(self.fetched)) == 5:
                here.set()

    store = Watched(open_store(str(where)))
    with Loader(open_dataset(store), split="train", global_batch=1) as loader:
        next(loader)  # four rows at most are read ahead, but the shards of 256 are fetched
        assert here.wait(timeout=60)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.data())
def test_row_digests_add_up_and_know_places(rows: int, draw: st.DataObject) -> None:
    tokens = np.random.default_rng(rows).integers(0, 512, (rows, 9)).astype(np.uint16)
    cut = draw.draw(st.integers(0, rows))
    whole = row_digest(0, tokens)
    assert (row_digest(0, tokens[:cut]) + row_digest(cut, tokens[cut:])) % 2**64 == whole
    assert 0 <= whole < 2**64
    assert row_digest(1, tokens) != whole
    changed = tokens.copy()
    changed[rows - 1, 8] ^= 1
    assert row_digest(0, changed) != whole
    if rows > 1:
        assert row_digest(0, tokens[::-1]) != whole
