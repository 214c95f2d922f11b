"""The feature pass: what it stores, shared by any workers, through interruptions."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt.data import Dataset
from igpt.errors import DataCorrupt, IgptError, NotFound, Unreachable, UserError
from igpt.evaluation import (
    features_key,
    model_digest,
    open_features,
    write_features,
)
from igpt.evaluation.feature_pass import chunk_size
from igpt.model.config import ModelConfig
from igpt.model.transformer import ImageGPT
from igpt.storage import S3Settings, Store, open_store


def expected(model: ImageGPT, data: Dataset, split: str) -> np.ndarray:
    """All features of a split at once: float16 [L+1, N, d]."""
    tokens = data.tokens(split, np.arange(data.samples(split))).astype(np.int64)
    return model.features(torch.from_numpy(tokens)).numpy().astype(np.float16)


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for the last bit of float16, which the batch size may turn."""
    return np.allclose(one.astype(np.float32), other.astype(np.float32), rtol=2e-3, atol=1e-4)


def digests(store: Store) -> dict[str, str]:
    found = store.objects()
    return {each.key: hashlib.sha256(store.get(each.key)).hexdigest() for each in found}


def file_of(store: Store, chunk: str) -> str:
    """The name of a chunk's file, of which there is one."""
    (name,) = [found.key for found in store.objects(chunk) if found.key.endswith(".npy")]
    return name


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_layers_are_the_features_of_the_network_in_the_order_of_the_data(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    for split in ("train", "validation", "test"):
        write_features(model, data, split, store, batch=4, chunk=8)
    features = open_features(store)
    assert (features.layers, features.width) == (3, 16)
    assert features.splits == ("train", "validation", "test")
    for split in features.splits:
        wanted = expected(model, data, split)
        assert features.samples(split) == len(data.labels(split))
        for layer in range(3):
            found = features.layer(split, layer)
            assert found.dtype == np.float16
            assert close(found, wanted[layer])


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_any_number_of_workers_writes_the_same_bytes(
    model: ImageGPT, data: Dataset, tmp_path: Path, world_size: int
) -> None:
    alone, shared = open_store(str(tmp_path / "alone")), open_store(str(tmp_path / "shared"))
    assert write_features(model, data, "train", alone, chunk=7) == 5
    written = [
        write_features(model, data, "train", shared, chunk=7, rank=rank, world_size=world_size)
        for rank in reversed(range(world_size))
    ]
    assert sum(written) == 5
    assert digests(alone) == digests(shared)


def test_rank_0_waits_for_the_others_before_it_writes_the_index(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    clock, ranks = Clock(), [1, 2]

    def others_work(seconds: float) -> None:
        assert not store.exists("train.json")
        clock.sleep(seconds)
        rank = ranks.pop()
        write_features(model, data, "train", store, chunk=7, rank=rank, world_size=3)

    write_features(
        model,
        data,
        "train",
        store,
        chunk=7,
        world_size=3,
        timeout=3,
        clock=clock,
        sleep=others_work,
    )
    assert open_features(store).samples("train") == 30


def test_a_worker_that_never_comes_is_an_error_that_names_its_chunk(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    clock = Clock()
    with pytest.raises(IgptError, match=r"60 seconds: 2 are missing, the first is train-8-000001"):
        write_features(
            model,
            data,
            "train",
            store,
            chunk=8,
            world_size=2,
            timeout=60,
            clock=clock,
            sleep=clock.sleep,
        )
    with pytest.raises(NotFound, match="no finished features"):
        open_features(store)


def test_interrupted_pass_goes_on_with_the_chunks_that_are_missing(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(model, data, "train", store, chunk=8, progress=stop)
    assert seen == [(8, 30), (16, 30)]
    assert len(store.objects()) == 4
    with pytest.raises(NotFound):
        open_features(store)
    assert write_features(model, data, "train", store, chunk=8) == 2
    assert write_features(model, data, "train", store, chunk=8) == 0
    assert close(open_features(store).layer("train", 1), expected(model, data, "train")[1])


def test_every_batch_is_told_and_may_be_the_last(
    model: ImageGPT, data: Dataset, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(model, data, "train", store, chunk=8, batch=3, progress=stop)
    assert seen == [3, 6, 8, 11]
    file = file_of(store, "train-8-000000")
    assert [found.key for found in store.objects()] == [file, "train-8-000000.json"]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert write_features(model, data, "train", store, chunk=8, batch=3) == 3


def test_rank_0_shows_life_while_it_waits_and_can_be_stopped(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(
            model,
            data,
            "train",
            store,
            chunk=8,
            world_size=2,
            progress=stop,
            sleep=lambda seconds: None,
        )
    assert seen == [(8, 16), (16, 16), (16, 16), (16, 16), (16, 16)]


@pytest.mark.parametrize(
    ("name", "resolution", "samples", "chunk"),
    [
        ("igpt-s", 8, 1_281_167, 4096),
        ("igpt-s", 32, 50_000, 1024),
        ("igpt-m", 32, 50_000, 128),
        ("igpt-l", 32, 50_000, 64),
        ("igpt-l", 32, 1_281_167, 1024),  # else there would be tens of thousands of files
        ("igpt-xl", 64, 10_000, 32),
    ],
)
def test_a_chunk_is_minutes_of_work(name: str, resolution: int, samples: int, chunk: int) -> None:
    assert chunk_size(ModelConfig.preset(name, resolution=resolution), samples) == chunk


@pytest.mark.parametrize("damage", ["part gone", "file gone", "file short"])
def test_unfinished_chunk_is_computed_again(
    model: ImageGPT, data: Dataset, store: Store, damage: str
) -> None:
    write_features(model, data, "train", store, chunk=8)
    before = digests(store)
    store.delete(["train.json"])
    file = file_of(store, "train-8-000002")
    if damage == "file short":
        store.put(file, store.get(file)[:-1])
    else:
        store.delete(["train-8-000002.json" if damage == "part gone" else file])
    assert write_features(model, data, "train", store, chunk=8) == 1
    assert digests(store) == before


@pytest.fixture
def elsewhere(model: ImageGPT) -> ImageGPT:
    """The same network as another kind of device computes it: other bytes of the same features."""
    other = ImageGPT(model.config, seed=3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1 + 1e-4
    return other


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_of_two_jobs_that_need_the_same_features_the_first_to_finish_a_chunk_wins(
    model: ImageGPT, elsewhere: ImageGPT, data: Dataset, store: Store, chunks: int
) -> None:
    """The second finishes so many chunks while the first is within its first one."""
    kept: dict[str, str] = {}

    def stop(done: int, total: int) -> None:
        if done == min(8 * chunks, total):
            raise KeyboardInterrupt

    def second(done: int, total: int) -> None:
        if done == 4:
            with pytest.raises(KeyboardInterrupt):
                write_features(elsewhere, data, "train", store, batch=8, chunk=8, progress=stop)
            kept.update(digests(store))
        assert kept.items() <= digests(store).items()

    assert write_features(model, data, "train", store, batch=4, chunk=8, progress=second) == (
        4 - chunks
    )
    assert len(kept) == 2 * chunks
    assert len(store.objects()) == 2 * 4 + 1
    features = open_features(store)
    for layer in range(3):
        assert np.allclose(
            features.layer("train", layer), expected(model, data, "train")[layer], atol=0.01
        )


def test_what_a_job_has_finished_stays_readable_while_a_slower_one_goes_on(
    model: ImageGPT, elsewhere: ImageGPT, data: Dataset, store: Store
) -> None:
    def faster(done: int, total: int) -> None:
        if done == 4:
            assert write_features(elsewhere, data, "train", store, chunk=8) == 4
        assert open_features(store).layer("train", 2).shape == (30, 16)

    assert write_features(model, data, "train", store, batch=4, chunk=8, progress=faster) == 0


def test_a_chunk_whose_file_is_gone_is_written_by_whoever_comes(
    model: ImageGPT, elsewhere: ImageGPT, data: Dataset, store: Store
) -> None:
    write_features(model, data, "train", store, chunk=8)
    store.delete(["train.json", file_of(store, "train-8-000002")])
    assert write_features(elsewhere, data, "train", store, chunk=8) == 1
    assert open_features(store).layer("train", 2).shape == (30, 16)


def test_chunks_of_another_size_are_not_taken_for_finished(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    write_features(model, data, "train", store, chunk=8)
    store.delete(["train.json"])
    before = digests(store)
    assert write_features(model, data, "train", store, chunk=6) == 5
    assert close(open_features(store).layer("train", 2), expected(model, data, "train")[2])
    assert before.items() <= digests(store).items()  # somebody else may be at work on those


def test_a_finished_split_is_taken_whatever_its_chunks(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    write_features(model, data, "train", store, chunk=8)
    assert write_features(model, data, "train", store) == 0


@pytest.mark.s3
def test_remote_features_are_fetched_once_into_the_cache(
    model: ImageGPT, data: Dataset, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    store = open_store(f"{s3_bucket}/features/k", S3Settings.from_environment(os.environ))
    write_features(model, data, "train", store, chunk=8)
    features = open_features(store)
    wanted = expected(model, data, "train")
    assert close(features.layer("train", 0), wanted[0])
    store.delete([found.key for found in store.objects() if found.key.endswith(".npy")])
    assert close(features.layer("train", 2), wanted[2])


def test_damaged_bytes_are_never_returned(model: ImageGPT, data: Dataset, store: Store) -> None:
    write_features(model, data, "train", store, chunk=8)
    file = file_of(store, "train-8-000001")
    content = bytearray(store.get(file))
    content[-5] ^= 1
    store.put(file, bytes(content))
    with pytest.raises(DataCorrupt, match=rf"{file} .*compute them again"):
        open_features(store).layer("train", 0)


def test_damaged_index_and_part_are_said(model: ImageGPT, data: Dataset, store: Store) -> None:
    write_features(model, data, "train", store, chunk=8)
    store.put("train.json", b"{}")
    with pytest.raises(DataCorrupt, match=r"train\.json is not an index"):
        open_features(store)
    store.delete(["train.json"])
    store.put("train-8-000000.json", b"nonsense")
    with pytest.raises(DataCorrupt, match=r"train-8-000000\.json"):
        write_features(model, data, "train", store, chunk=8)


def test_array_of_another_shape_is_refused(model: ImageGPT, data: Dataset, store: Store) -> None:
    write_features(model, data, "train", store)
    store.put("train.json", store.get("train.json").replace(b'"width": 16', b'"width": 15'))
    with pytest.raises(DataCorrupt, match=r"is not an array float16 \[3, 30, 15\]"):
        open_features(store).layer("train", 0)


@pytest.mark.parametrize("gain", [1e6, float("nan")])
def test_features_that_float16_cannot_hold_are_refused(
    model: ImageGPT, data: Dataset, store: Store, gain: float
) -> None:
    with torch.no_grad():
        model.blocks[1].ln_1.weight.fill_(gain)
    with pytest.raises(IgptError, match="features of layer 1 reach"):
        write_features(model, data, "train", store)
    assert store.objects() == []


@pytest.mark.parametrize("change", [{"colors": 9}, {"resolution": 5}])
def test_network_of_another_palette_or_resolution_is_refused(
    model: ImageGPT, data: Dataset, store: Store, change: dict[str, int]
) -> None:
    other = ImageGPT(model.config.model_copy(update=change))
    with pytest.raises(UserError, match="the data has 4x4 images in 8 colours"):
        write_features(other, data, "train", store)


def test_wrong_questions_are_refused(model: ImageGPT, data: Dataset, store: Store) -> None:
    write_features(model, data, "train", store)
    features = open_features(store)
    with pytest.raises(UserError, match="there is no layer 3"):
        features.layer("train", 3)
    with pytest.raises(NotFound, match="no features of 'test'"):
        features.layer("test", 0)
    with pytest.raises(NotFound, match="no split 'dev'"):
        write_features(model, data, "dev", store)
    with pytest.raises(UserError, match="rank 2 is not one of 2"):
        write_features(model, data, "train", store, rank=2, world_size=2)


def test_features_of_other_data_are_not_taken_for_these(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    write_features(model, data, "test", store)
    store.put("train.json", store.get("test.json"))
    with pytest.raises(UserError, match="holds features of 18 train samples"):
        write_features(model, data, "train", store)


def test_model_digest_tells_weights_seeds_and_heads_apart(model: ImageGPT) -> None:
    config = model.config
    digest = model_digest(model)
    assert digest == model_digest(ImageGPT(config, seed=3))
    others = {
        model_digest(ImageGPT(config, seed=4)),
        model_digest(ImageGPT(config.model_copy(update={"heads": 4}), seed=3)),
        model_digest(ImageGPT(config, seed=3).bfloat16()),
    }
    with torch.no_grad():
        model.ln_f.weight[0] += 1e-6
    others.add(model_digest(model))
    assert len(others - {digest}) == 4


def test_key_depends_on_model_and_data() -> None:
    keys = {features_key("a", "b"), features_key("b", "a"), features_key("a", "c")}
    assert len(keys) == 3
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for two pages: the first and the last of a file with a hole."""
    folder = tmp_path / "disk"
    folder.mkdir()
    page = os.sysconf("SC_PAGESIZE")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={16 * page}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may make a small disk")
    (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - 2 * page))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_an_error_that_names_the_file_and_kills_nobody(
    data: Dataset, store: Store, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(full_disk))
    config = ModelConfig(layers=2, width=64, heads=2, resolution=4, colors=8)
    with pytest.raises(
        Unreachable, match=r"disk/.*train-4096-000000\.npy cannot be written: No space"
    ):
        write_features(ImageGPT(config), data, "train", store)
    assert [path.name for path in full_disk.iterdir()] == ["filler"]


def test_size_is_that_of_the_stored_numbers(model: ImageGPT, data: Dataset, store: Store) -> None:
    write_features(model, data, "train", store, chunk=10)
    sizes = [found.size for found in store.objects() if found.key.endswith(".npy")]
    assert sum(sizes) == model.config.feature_bytes(30) + 3 * 128
    large = ModelConfig.preset("igpt-l", resolution=32)
    assert large.feature_bytes(1_281_167) == pytest.approx(193e9, rel=1e-3)
