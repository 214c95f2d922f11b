"""Reading: the right rows, proven bytes, a bounded cache."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from igpt.data import ArraySource, open_dataset, write_shards
from igpt.data.index import Shard
from igpt.data.shard_cache import ShardCache
from igpt.errors import DataCorrupt, NotFound, Unreachable
from igpt.storage import open_store
from tests.data.examples import Remote, a_palette, a_source, noise
from tests.support.file_systems import NO_ANSWER


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """A data set of 90 + 10 + 25 samples in shards of 20."""
    write_shards(
        a_source(), tmp_path / "set", resolution=8, palette=a_palette(), samples_per_shard=20
    )
    return tmp_path / "set"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def test_samples_are_those_of_the_source_in_any_order(where: Path) -> None:
    data, source, palette = open_dataset(where), a_source(), a_palette()
    numbers = np.random.default_rng(0).integers(0, 90, 200)
    images = data.source_order("train")[numbers]
    expected = np.concatenate([palette.encode(source.image(int(i))[None]) for i in images])
    tokens, labels = data.read("train", numbers)
    assert tokens.dtype == np.uint16
    assert labels.dtype == np.int64
    assert np.array_equal(tokens, expected)
    assert np.array_equal(data.tokens("train", numbers), expected)
    assert labels.tolist() == [source.record(int(i)).label for i in images]
    assert np.array_equal(labels, data.labels("train")[numbers])


def test_labels_of_no_class_are_minus_one(tmp_path: Path) -> None:
    write_shards(ArraySource(noise(20)), tmp_path / "s", resolution=8, palette=a_palette())
    data = open_dataset(tmp_path / "s")
    assert set(data.labels("train")) == {-1}
    assert set(data.read("train", np.arange(18))[1]) == {-1}


def test_what_is_read_is_a_copy_that_may_be_changed(where: Path) -> None:
    data = open_dataset(where)
    before = data.tokens("train", np.array([0]))
    changed = data.tokens("train", np.array([0]))
    changed += 1
    assert np.array_equal(data.tokens("train", np.array([0])), before)


@pytest.mark.parametrize("number", [-1, 90])
def test_numbers_outside_the_split_are_refused(where: Path, number: int) -> None:
    with pytest.raises(IndexError, match="has 90"):
        open_dataset(where).tokens("train", np.array([number]))


def test_no_numbers_read_nothing(where: Path) -> None:
    assert open_dataset(where).tokens("train", np.array([], int)).shape == (0, 64)


def test_splits_that_there_are_not_are_not_found(where: Path) -> None:
    data = open_dataset(where)
    for ask in (data.samples, data.labels, data.source_order, data.as_webdataset):
        with pytest.raises(NotFound, match="'val'"):
            ask("val")


def test_a_damaged_shard_is_named_when_it_is_read_and_not_before(where: Path) -> None:
    damage(where / "train-000002.tar")
    data = open_dataset(where)
    assert len(data.tokens("train", np.arange(40))) == 40
    with pytest.raises(DataCorrupt, match=r"train-000002\.tar"):
        data.tokens("train", np.array([40]))


@pytest.mark.parametrize("name", ["samples.parquet", "palette.npy"])
def test_a_damaged_side_file_is_named(where: Path, name: str) -> None:
    damage(where / name) if name == "samples.parquet" else (where / name).write_bytes(
        a_palette(5).to_bytes()
    )
    data = open_dataset(where)
    with pytest.raises(DataCorrupt, match=name):
        data.labels("train") if name == "samples.parquet" else data.palette()


def test_a_missing_shard_is_named(where: Path) -> None:
    (where / "train-000000.tar").unlink()
    with pytest.raises(DataCorrupt, match=r"train-000000\.tar"):
        open_dataset(where).tokens("train", np.array([0]))


def test_a_shard_that_goes_while_the_data_is_in_use_is_named(where: Path) -> None:
    cache = ShardCache(open_store(str(where)))
    shard = open_dataset(where).index.split("train").shards[0]
    cache.file(shard)
    (where / shard.name).unlink()
    with pytest.raises(DataCorrupt, match=r"train-000000\.tar"):
        cache.map(shard)


def test_a_shard_whose_file_system_is_away_is_unreachable_and_no_damage(tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").symlink_to(NO_ANSWER)
    shard = Shard(name="train-000000.tar", bytes=0, sha256="0" * 64, samples=1)
    with pytest.raises(Unreachable, match=r"train-000000\.tar cannot be read: .* server answers"):
        ShardCache(open_store(str(tmp_path))).map(shard)


def test_the_repair_that_is_advised_repairs(where: Path) -> None:
    damage(where / "train-000002.tar")
    with pytest.raises(DataCorrupt, match=r"Delete it, parts/train-000002\.json and index\.json"):
        open_dataset(where).tokens("train", np.array([40]))
    for name in ("train-000002.tar", "parts/train-000002.json", "index.json"):
        (where / name).unlink()
    write_shards(a_source(), where, resolution=8, palette=a_palette(), samples_per_shard=20)
    assert len(open_dataset(where).tokens("train", np.array([40]))) == 1


def test_the_palette_comes_with_the_data(where: Path) -> None:
    assert open_dataset(where).palette().digest == a_palette().digest


def test_the_digest_is_of_the_index_and_so_of_the_data(where: Path, tmp_path: Path) -> None:
    write_shards(
        a_source(), tmp_path / "same", resolution=8, palette=a_palette(), samples_per_shard=20
    )
    assert open_dataset(tmp_path / "same").digest == open_dataset(where).digest
    write_shards(a_source(), tmp_path / "other", resolution=8, palette=a_palette())
    assert open_dataset(tmp_path / "other").digest != open_dataset(where).digest


def test_as_webdataset_gives_every_sample(where: Path) -> None:
    data = open_dataset(where)
    samples = list(data.as_webdataset("train").decode())
    assert np.array_equal(
        np.stack([sample["tokens.npy"] for sample in samples]), data.tokens("train", np.arange(90))
    )
    assert [sample["cls"] for sample in samples] == data.labels("train").tolist()


def test_as_webdataset_stops_at_a_damaged_shard(where: Path) -> None:
    damage(where / "train-000001.tar")
    with pytest.raises(DataCorrupt, match="train-000001"):
        list(open_dataset(where).as_webdataset("train"))


def test_shards_of_a_remote_store_are_fetched_once_each(where: Path) -> None:
    store = Remote(open_store(str(where)))
    expected = open_dataset(where).tokens("train", np.arange(90))
    for _ in range(2):  # a second process finds them in the cache
        data = open_dataset(store)
        assert np.array_equal(data.tokens("train", np.arange(90)), expected)
    assert sorted(store.fetched) == [f"train-00000{i}.tar" for i in range(5)]


def test_only_the_shards_that_are_needed_are_fetched(where: Path) -> None:
    store = Remote(open_store(str(where)))
    open_dataset(store).tokens("train", np.array([25, 85]))
    assert sorted(store.fetched) == ["train-000001.tar", "train-000004.tar"]


def test_a_remote_shard_that_stays_wrong_is_tried_twice_and_named(where: Path) -> None:
    damage(where / "train-000000.tar")
    store = Remote(open_store(str(where)))
    with pytest.raises(DataCorrupt, match="train-000000"):
        open_dataset(store).tokens("train", np.array([0]))
    assert store.fetched == ["train-000000.tar"] * 2


def test_a_damaged_copy_in_the_cache_is_fetched_again(where: Path, home_cache: Path) -> None:
    store = Remote(open_store(str(where)))
    expected = open_dataset(store).tokens("train", np.array([0]))
    (copy,) = (home_cache / "shards").glob("*.tar")
    damage(copy)
    assert np.array_equal(open_dataset(store).tokens("train", np.array([0])), expected)
    assert store.fetched == ["train-000000.tar"] * 2


@pytest.fixture
def home_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_stays_within_its_bound_and_every_row_is_still_read(
    where: Path, home_cache: Path
) -> None:
    size = (where / "train-000000.tar").stat().st_size
    data = open_dataset(Remote(open_store(str(where))), cache_bytes=2 * size + 100)
    expected = open_dataset(where).tokens("train", np.arange(90))
    for number in range(0, 90, 10):
        assert np.array_equal(data.tokens("train", np.array([number]))[0], expected[number])
        held = list((home_cache / "shards").glob("*.tar"))
        assert sum(path.stat().st_size for path in held) <= 2 * size + 100
    assert len(held) == 2


def test_the_shard_that_was_not_used_for_longest_goes_first(where: Path, home_cache: Path) -> None:
    store = Remote(open_store(str(where)))
    size = (where / "train-000000.tar").stat().st_size
    for number in (0, 20, 0, 40):  # shards 0, 1, 0 again, then 2: shard 1 has to go
        open_dataset(store, cache_bytes=2 * size).tokens("train", np.array([number]))
    open_dataset(store, cache_bytes=2 * size).tokens("train", np.array([0]))
    assert [name[-5] for name in store.fetched] == ["0", "1", "2"]


def read_all(where: str, expected: bytes) -> None:
    data = open_dataset(Remote(open_store(where)), cache_bytes=60_000)
    for _ in range(5):
        assert data.tokens("train", np.arange(90)).tobytes() == expected
        data._mapped.clear()


def test_processes_share_a_cache_that_is_too_small_for_them(where: Path, home_cache: Path) -> None:
    expected = open_dataset(where).tokens("train", np.arange(90)).tobytes()
    context = multiprocessing.get_context("spawn")
    readers = [context.Process(target=read_all, args=(str(where), expected)) for _ in range(2)]
    try:
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    finally:
        for reader in readers:
            if reader.is_alive():
                reader.kill()
    assert [reader.exitcode for reader in readers] == [0, 0]


@pytest.mark.s3
def test_a_data_set_is_written_to_and_read_from_s3(s3_bucket: str, where: Path) -> None:
    write_shards(
        a_source(), f"{s3_bucket}/set", resolution=8, palette=a_palette(), samples_per_shard=20
    )
    remote, local = open_dataset(f"{s3_bucket}/set"), open_dataset(where)
    assert remote.digest == local.digest
    assert np.array_equal(
        remote.tokens("train", np.arange(90)), local.tokens("train", np.arange(90))
    )
    assert np.array_equal(remote.labels("test"), local.labels("test"))
    assert remote.palette().digest == a_palette().digest


def test_the_room_needs_no_torch() -> None:
    code = "import sys, igpt.data; assert not {'torch', 'ray', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
