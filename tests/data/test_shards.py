"""Writing shards: format, restart, several workers, refusals."""

import itertools
import json
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from numpy.typing import NDArray

from igpt.data import (
    ArraySource,
    BadImage,
    Index,
    Palette,
    Source,
    open_dataset,
    open_source,
    palette_for,
    write_shards,
)
from igpt.data.shard_format import geometry
from igpt.errors import IgptError, UserError
from igpt.storage import Store, open_store
from tests.data.examples import a_palette, a_source, noise, write_files


def write(source: Source, where: str | Path | Store, **changed: Any) -> Index:
    options = {"resolution": 8, "palette": a_palette(), "samples_per_shard": 20, **changed}
    return write_shards(source, where, **options)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Torn(ArraySource):
    """A source of which some images cannot be read."""

    def __init__(self, bad: set[int], count: int = 50) -> None:
        super().__init__(noise(count))
        self.bad = bad

    def image(self, number: int) -> NDArray[np.uint8]:
        if number in self.bad:
            raise BadImage(f"image {number:08d} cannot be read")
        return super().image(number)


@pytest.mark.parametrize(("resolution", "stride"), [(32, 4096), (48, 6656), (64, 10240), (8, 2048)])
def test_every_sample_takes_the_same_number_of_bytes(
    tmp_path: Path, resolution: int, stride: int
) -> None:
    source = ArraySource(noise(12, resolution), range(12))
    index = write(source, tmp_path, resolution=resolution, samples_per_shard=100)
    assert index.stride == stride
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert [member.offset for member in members[::2]] == [i * stride for i in range(11)]
    assert {member.offset_data - member.offset for member in members} == {512}
    assert index.token_offset == members[0].offset_data + 128
    assert index.label_offset == members[1].offset_data


def test_the_strides_are_the_documented_ones() -> None:
    assert [geometry(side * side)[0] for side in (32, 48, 64)] == [4096, 6656, 10240]


def test_the_tar_command_reads_a_shard(tmp_path: Path) -> None:
    write(a_source(), tmp_path)
    names = subprocess.run(
        ["tar", "-tf", tmp_path / "train-000000.tar"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert names[:2] == ["train-0000000000.tokens.npy", "train-0000000000.cls"]
    assert len(names) == 40


def test_plain_webdataset_reads_the_tokens_and_labels_that_were_meant(tmp_path: Path) -> None:
    source, palette = a_source(), a_palette()
    write(source, tmp_path)
    table = pq.read_table(tmp_path / "samples.parquet").to_pydict()
    image_of = dict(zip(table["key"], table["image"], strict=True))
    urls = [str(path) for path in sorted(tmp_path.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == 90
    for sample in samples:
        number = image_of[sample["__key__"]]
        assert sample["cls"] == source.record(number).label
        assert np.array_equal(sample["tokens.npy"], palette.encode(source.image(number)[None])[0])


def test_a_sample_without_a_label_has_class_minus_one(tmp_path: Path) -> None:
    write(ArraySource(noise(20)), tmp_path)
    urls = str(tmp_path / "train-000000.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert {sample["cls"] for sample in samples} == {-1}


def test_splits_are_those_of_the_source_and_what_is_held_out(tmp_path: Path) -> None:
    index = write(a_source(100), tmp_path)
    assert {name: split.samples for name, split in index.splits.items()} == {
        "train": 90,
        "validation": 10,
        "test": 25,
    }
    table = pq.read_table(tmp_path / "samples.parquet").to_pydict()
    assert sorted(table["image"]) == list(range(125))
    held_out = [i for i, s in zip(table["image"], table["split"], strict=True) if s == "validation"]
    assert all(image < 100 for image in held_out)
    other = write(a_source(100), tmp_path.parent / "other", seed=1)
    assert other.splits["validation"].token_counts != index.splits["validation"].token_counts


def test_a_source_with_its_own_validation_keeps_all_of_train(tmp_path: Path) -> None:
    source = ArraySource(noise(30), splits=["train"] * 20 + ["validation"] * 10)
    index = write(source, tmp_path, test_fraction=0.25)
    assert {name: split.samples for name, split in index.splits.items()} == {
        "train": 15,
        "validation": 10,
        "test": 5,
    }


def test_a_source_of_test_images_alone_is_a_data_set_without_train(tmp_path: Path) -> None:
    index = write(ArraySource(noise(5), splits=["test"] * 5), tmp_path)
    assert list(index.splits) == ["test"]


def test_nothing_is_held_out_if_nothing_is_asked_for(tmp_path: Path) -> None:
    index = write(ArraySource(noise(30)), tmp_path, validation_fraction=0.0)
    assert list(index.splits) == ["train"]


def test_samples_are_shuffled_once_before_they_are_cut_into_shards(tmp_path: Path) -> None:
    write(a_source(100), tmp_path)
    order = pq.read_table(tmp_path / "samples.parquet")["image"].to_numpy()[:90]
    assert not np.array_equal(order, np.sort(order))
    assert np.ptp(order[:20]) > 50


def test_token_counts_are_those_of_the_stored_tokens(tmp_path: Path) -> None:
    index = write(a_source(), tmp_path)
    data = open_dataset(tmp_path)
    for split in ("train", "validation", "test"):
        tokens = data.tokens(split, np.arange(data.samples(split)))
        counts = np.bincount(tokens.reshape(-1), minlength=16)
        assert index.splits[split].token_counts == tuple(counts)  # type: ignore[index]


def test_crops_multiply_train_alone_and_differ(tmp_path: Path) -> None:
    images = noise(10, 16).repeat(16, axis=1).repeat(16, axis=2)  # 256 x 256, in coarse squares
    source = ArraySource(images, splits=["train"] * 8 + ["validation"] * 2)
    palette = a_palette(64)
    index = write(source, tmp_path / "a", crops=3, palette=palette)
    assert {name: split.samples for name, split in index.splits.items()} == {
        "train": 24,
        "validation": 2,
    }
    data = open_dataset(tmp_path / "a")
    tokens = data.tokens("train", np.arange(24))
    assert len(np.unique(tokens, axis=0)) == 24
    assert sorted(data.source_order("train")) == sorted([*range(8)] * 3)
    plain = write(source, tmp_path / "b", crops=3, augment=False, palette=palette)
    assert plain.preprocessing.train == "centre crop"
    same = open_dataset(tmp_path / "b").tokens("train", np.arange(24))
    assert len(np.unique(same, axis=0)) == 8


def test_the_index_says_how_many_samples_were_only_resized(tmp_path: Path) -> None:
    assert write(a_source(100), tmp_path / "a").preprocessing.only_resized == 125
    large = ArraySource(noise(3, 224))
    assert write(large, tmp_path / "b").preprocessing.only_resized == 0


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    alone = write(a_source(), tmp_path / "alone")
    found: dict[int, Index] = {}

    def work(rank: int) -> None:
        found[rank] = write(
            a_source(),
            tmp_path / "three",
            rank=rank,
            world_size=3,
            timeout=60,
            sleep=lambda seconds: time.sleep(seconds / 100),
        )

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == {0: alone, 1: alone, 2: alone}
    assert contents(tmp_path / "three") == contents(tmp_path / "alone")


def test_a_worker_writes_its_own_shards_and_no_index(tmp_path: Path) -> None:
    clock = itertools.count(0, 100)
    with pytest.raises(
        IgptError, match=r"4 are missing, the first is parts/train-000000\.json"
    ) as caught:
        write_shards(
            ArraySource(noise(30)),
            tmp_path,
            resolution=8,
            palette=a_palette(),
            samples_per_shard=10,
            rank=1,
            world_size=3,
            timeout=300,
            clock=lambda: float(next(clock)),
            sleep=lambda seconds: None,
        )
    assert not isinstance(caught.value, UserError)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["train-000001.tar"]
    assert not (tmp_path / "index.json").exists()


def test_waiting_goes_on_while_others_finish_shards(tmp_path: Path) -> None:
    """Each look at the store is 200 seconds after the last, and the patience is 300."""
    others = iter([1, 2])
    clock = itertools.count(0, 200)

    def sleep(seconds: float) -> None:
        rank = next(others, None)
        if rank is not None:
            with pytest.raises(IgptError, match="have not come"):
                write(
                    ArraySource(noise(30)),
                    tmp_path,
                    samples_per_shard=10,
                    rank=rank,
                    world_size=3,
                    timeout=-1,
                    sleep=lambda seconds: None,
                )

    index = write(
        ArraySource(noise(30)),
        tmp_path,
        samples_per_shard=10,
        world_size=3,
        timeout=300,
        clock=lambda: float(next(clock)),
        sleep=sleep,
    )
    assert index.splits["train"].samples == 27


class Stop(Exception):
    """What stands for a kill."""


def stop_after(samples: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= samples:
            raise Stop

    return progress


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_shows_life_and_can_be_stopped(tmp_path: Path, rank: int) -> None:
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 5:
            raise Stop

    with pytest.raises(Stop):
        write(
            ArraySource(noise(30)),
            tmp_path,
            samples_per_shard=20,
            rank=rank,
            world_size=3,
            progress=progress,
            sleep=lambda seconds: None,
        )
    assert len(set(seen[1:])) == 1


def test_a_restart_keeps_finished_shards_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = write(a_source(), tmp_path / "whole")
    with pytest.raises(Stop):
        write(a_source(), tmp_path / "torn", progress=stop_after(60))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "torn").glob("*.tar")}
    assert sorted(kept) == ["train-000000.tar", "train-000001.tar"]
    assert write(a_source(), tmp_path / "torn") == whole
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
    for name, written in kept.items():
        assert (tmp_path / "torn" / name).stat().st_mtime_ns == written


def test_a_finished_shard_that_has_gone_is_written_again(tmp_path: Path) -> None:
    whole = write(a_source(), tmp_path)
    for name in ("train-000001.tar", "index.json"):
        (tmp_path / name).unlink()
    assert write(a_source(), tmp_path) == whole
    assert len(open_dataset(tmp_path).tokens("train", np.arange(90))) == 90


def test_the_same_output_is_returned_as_it_is(tmp_path: Path) -> None:
    first = write(a_source(), tmp_path)
    before = contents(tmp_path)
    assert write(a_source(), tmp_path, progress=stop_after(0)) == first
    assert contents(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"seed": 5}, "seed is 0 there, 5 here"),
        ({"crops": 2}, "crops is 1 there, 2 here"),
        ({"source": a_source(80)}, "source is"),
        ({"palette": a_palette(17)}, "palette is"),
    ],
)
def test_another_data_set_is_never_written_over(
    tmp_path: Path, finished: bool, changed: dict[str, Any], problem: str
) -> None:
    if finished:
        write(a_source(), tmp_path)
    else:
        with pytest.raises(Stop):
            write(a_source(), tmp_path, progress=stop_after(30))
    before = contents(tmp_path)
    given = {"source": a_source(), "where": tmp_path, **changed}
    with pytest.raises(UserError, match=problem):
        write(**given)
    assert contents(tmp_path) == before


def test_bad_images_within_the_budget_are_listed_and_left_out(tmp_path: Path) -> None:
    index = write(Torn({3, 30}), tmp_path, bad_images=2, validation_fraction=0.0)
    assert [bad.name for bad in index.bad_images] == ["00000003", "00000030"]
    assert "cannot be read" in index.bad_images[0].reason
    assert index.splits["train"].samples == 48
    images = open_dataset(tmp_path).source_order("train")
    assert sorted(images) == sorted(set(range(50)) - {3, 30})


def test_a_bad_image_beyond_the_budget_is_named_and_the_budget_may_be_raised(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"image 000000(03|30) cannot be read; that is bad image 2"):
        write(Torn({3, 30}), tmp_path, bad_images=1)
    assert write(Torn({3, 30}), tmp_path, bad_images=2).splits["train"].samples >= 43


def test_the_budget_is_one_for_all_workers_and_crops(tmp_path: Path) -> None:
    source = Torn({3, 30})
    index = write(source, tmp_path / "a", bad_images=2, crops=4)
    assert len(index.bad_images) == 2
    for rank in (1, 0):  # each meets one bad image at most, together there are two
        with pytest.raises(IgptError) as caught:
            write(
                source,
                tmp_path / "b",
                bad_images=1,
                samples_per_shard=1,
                rank=rank,
                world_size=2,
                timeout=-1,
                sleep=lambda seconds: None,
            )
    assert isinstance(caught.value, UserError)
    assert not (tmp_path / "b/index.json").exists()


def test_a_source_of_which_nothing_can_be_read_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not one image"):
        write(Torn(set(range(5)), 5), tmp_path, bad_images=5)


def test_a_shard_of_bad_images_alone_is_left_out(tmp_path: Path) -> None:
    index = write(Torn({1, 2}, 4), tmp_path, bad_images=2, samples_per_shard=1)
    assert all(shard.samples == 1 for split in index.splits.values() for shard in split.shards)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"crops": 0}, "crops=0"),
        ({"resolution": 0}, "resolution=0"),
        ({"resampling": "cubic"}, "resampling='cubic'"),
        ({"validation_fraction": 1.5}, "validation_fraction=1.5"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        write(a_source(), tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_one_image_cannot_be_train_and_validation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is left"):
        write(ArraySource(noise(1)), tmp_path)


def test_progress_counts_every_sample_of_the_rank(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(a_source(), tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (125, 125)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_table_names_each_sample(tmp_path: Path) -> None:
    write_files(tmp_path / "in", ["train/cat/1.png", "train/dog/2.png", "val/cat/3.png"])
    write(open_source(f"folder:{tmp_path / 'in'}"), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/samples.parquet").to_pylist()
    assert sorted((row["name"], row["class"], row["label"], row["split"]) for row in rows) == [
        ("train/cat/1.png", "cat", 0, "train"),
        ("train/dog/2.png", "dog", 1, "train"),
        ("val/cat/3.png", "cat", 0, "validation"),
    ]


def test_the_claim_says_what_is_written(tmp_path: Path) -> None:
    write(a_source(), tmp_path, seed=4)
    claim = json.loads((tmp_path / "options.json").read_text())
    assert claim["seed"] == 4
    assert claim["palette"] == a_palette().digest
    assert claim["source"] == a_source().digest


def test_a_palette_is_fitted_once_and_then_kept(tmp_path: Path) -> None:
    first = palette_for(a_source(), tmp_path, resolution=8, colors=8)
    again = palette_for(a_source(40), open_store(str(tmp_path)), resolution=8, colors=8)
    assert again.digest == first.digest
    assert write(a_source(), tmp_path, palette=first).palette_digest == first.digest
    with pytest.raises(UserError, match="8 colours, not 9"):
        palette_for(a_source(), tmp_path, resolution=8, colors=9)


def test_rank_0_fits_the_palette_and_the_others_wait_for_it(tmp_path: Path) -> None:
    waited: list[float] = []
    seen: list[tuple[int, int]] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        palette_for(
            a_source(),
            tmp_path,
            resolution=8,
            colors=8,
            progress=lambda done, total: seen.append((done, total)),
        )

    palette_for(a_source(), tmp_path, resolution=8, colors=8, rank=1, sleep=sleep)
    assert len(waited) == 1
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_asked_to_stop_fits_no_palette_and_waits_for_none(tmp_path: Path, rank: int) -> None:
    with pytest.raises(Stop):
        palette_for(a_source(), tmp_path, resolution=8, colors=8, rank=rank, progress=stop_after(0))
    assert not (tmp_path / "palette.npy").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_fitted_palette_is_not_taken_for_one_that_was_given_nor_for_another_fit(
    tmp_path: Path, finished: bool
) -> None:
    def fitted(where: str, images: int) -> Palette:
        return palette_for(a_source(), tmp_path / where, resolution=8, colors=16, images=images)

    def begun(where: str, palette: Palette) -> None:
        if finished:
            write(a_source(), tmp_path / where, palette=palette)
        else:
            with pytest.raises(Stop):
                write(a_source(), tmp_path / where, palette=palette, progress=stop_after(30))

    begun("given", a_palette())
    with pytest.raises(UserError, match="palette_made is 'given' there, '16 colours fitted to"):
        write(a_source(), tmp_path / "given", palette=fitted("given", 50))
    begun("fitted", fitted("fitted", 50))
    with pytest.raises(UserError, match=r"at most 50 images' there, .* at most 60 images' here"):
        write(a_source(), tmp_path / "fitted", palette=fitted("fitted", 60))
    write(a_source(), tmp_path / "fitted", palette=fitted("fitted", 50))


@pytest.mark.parametrize("finished", [True, False])
def test_a_claim_that_does_not_say_what_made_its_palette_is_gone_on_with(
    tmp_path: Path, finished: bool
) -> None:
    if finished:
        write(a_source(), tmp_path)
    else:
        with pytest.raises(Stop):
            write(a_source(), tmp_path, progress=stop_after(30))
    claim = json.loads((tmp_path / "options.json").read_text())
    del claim["palette_made"]
    (tmp_path / "options.json").write_text(json.dumps(claim))
    palette = palette_for(a_source(), tmp_path, resolution=8, colors=16)
    assert write(a_source(), tmp_path, palette=palette).palette_digest == a_palette().digest


def test_a_palette_is_fitted_to_training_images_that_can_be_read(tmp_path: Path) -> None:
    pixels = np.full((3, 8, 8, 3), 10, np.uint8)
    pixels[2] = 99
    source = ArraySource(pixels, splits=["train", "train", "test"])
    palette = palette_for(source, tmp_path, resolution=8, colors=1)
    assert palette.digest == Palette.fit(pixels[0].reshape(-1, 3), 1).digest
