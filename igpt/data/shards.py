"""Writes a data set: quantized images in shards, by any number of workers, with any interruption.

    options.json                 what is being written, claimed first: source, palette, options
    palette.npy                  the colours
    train-000000.tar ...         the shards
    parts/train-000000.json      what is in a finished shard, written after it
    samples.parquet              key -> name and place in the source, class, crop, split
    index.json                   last

Worker r writes the shards i with i % world_size == r and passes over those that have a part. The
bytes depend on source, palette and options alone, so it does no harm if a shard is written twice.
Rank 0 waits until all parts are there, seen in the store only, and writes the last two files; the
others wait for the index.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.data.assembly import BadItem, Part, assemble, part_key, read_part
from igpt.data.claims import claim, shard_options
from igpt.data.images import BadImage
from igpt.data.index import INDEX, Index, Shard, ShardOptions, load_index
from igpt.data.palette import Palette
from igpt.data.plan import PlannedShard, plan_shards
from igpt.data.preprocessing import Filter, centre_crop, is_only_resized, random_crop
from igpt.data.shard_format import append, key, open_shard
from igpt.data.sources import Source
from igpt.data.stores import as_store
from igpt.errors import UserError
from igpt.storage import Store
from igpt.storage.files import explained
from igpt.storage.pieces import PIECES_SECONDS, await_pieces

_BATCH = 256  # images that are encoded at once


def write_shards(
    source: Source,
    uri: str | Path | Store,
    *,
    resolution: int,
    palette: Palette,
    samples_per_shard: int = 10_000,
    crops: int = 1,
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    augment: bool = True,
    resampling: Filter = "bicubic",
    bad_images: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = PIECES_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Index:
    """Writes this rank's shards of the source to the store at `uri`; returns the finished index.

    `validation_fraction` and `test_fraction` of the training images are held out where the source
    lacks that split. `crops` samples are made of each training image, by random crops unless
    `augment` is off (see `igpt.data.preprocessing`). `bad_images` images may be unreadable; they
    are listed in the index. `progress(done, total)` counts the samples of this rank, and is
    repeated while others are waited for; what it raises ends the work, with finished shards kept.

    The same output, finished, is returned as it is; half-finished, it is gone on with. Raises
    UserError where it was begun with other options, another source or palette, and for more bad
    images than allowed; IgptError where no other rank has finished a shard for `timeout` seconds.
    """
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is not one of {world_size} workers")
    options = shard_options(
        resolution=resolution,
        samples_per_shard=samples_per_shard,
        crops=crops,
        seed=seed,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        augment=augment,
        resampling=resampling,
    )
    store = as_store(uri)
    if claim(store, options, source.digest, palette):
        return load_index(store)[0]

    plan = plan_shards(source, options)
    mine = plan[rank::world_size]
    budget = _Budget(bad_images)
    count = _Count(sum(len(shard.images) for shard in mine), progress)
    sizes = {found.key: found.size for found in store.objects()}
    for shard in mine:
        part = _finished(store, shard, sizes)
        if part is None:
            _write_shard(store, shard, source, palette, options, budget, count)
        else:
            budget.spend(part.bad)
            count.add(len(shard.images))

    await_pieces(
        [part_key(shard) for shard in plan] + [INDEX] * (rank > 0),
        lambda: [found.key for found in store.objects()],
        what=f"{store.uri}: shards",
        tick=lambda: count.add(0),
        timeout=timeout,
        clock=clock,
        sleep=sleep,
    )
    if rank == 0:
        parts = [read_part(store, shard) for shard in plan]
        for part in parts:
            budget.spend(part.bad)
        assemble(store, plan, parts, source, palette, options)
    return load_index(store)[0]


class _Budget:
    """The bad images met so far; one that is in several shards counts once."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._names: set[str] = set()

    def spend(self, bad: Iterable[BadItem]) -> None:
        for item in bad:
            self._names.add(item.name)
            if len(self._names) > self._allowed:
                raise UserError(
                    f"{item.reason.rstrip('.')}; that is bad image {len(self._names)}",
                    expected=f"at most {self._allowed}",
                    mend="Mend or remove the file, or allow more bad images",
                )


class _Count:
    """The samples of this rank that are done, told to whoever wants to know."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def add(self, samples: int) -> None:
        self._done += samples
        if self._progress is not None:
            self._progress(self._done, self._total)


def _finished(store: Store, shard: PlannedShard, sizes: dict[str, int]) -> Part | None:
    """The part of a shard that is written already, with the size that it should have."""
    if part_key(shard) not in sizes:
        return None
    part = read_part(store, shard)
    return part if sizes.get(shard.name) == part.shard.bytes else None


def _write_shard(
    store: Store,
    shard: PlannedShard,
    source: Source,
    palette: Palette,
    options: ShardOptions,
    budget: _Budget,
    count: _Count,
) -> None:
    """Writes the shard and then its part."""
    bad: list[BadItem] = []
    token_counts = np.zeros(palette.colors, np.int64)
    only_resized = 0
    with tempfile.TemporaryDirectory(prefix="igpt-shard-") as folder:
        path = Path(folder) / shard.name
        with explained("written", path), path.open("wb") as file, open_shard(file) as tar:
            for start in range(0, len(shard.images), _BATCH):
                batch = _Batch()
                for place in range(start, min(start + _BATCH, len(shard.images))):
                    _add_image(batch, shard, place, source, options)
                bad += batch.bad
                budget.spend(batch.bad)
                only_resized += batch.only_resized
                if batch.images:
                    tokens = palette.encode(np.stack(batch.images))
                    token_counts += np.bincount(tokens.reshape(-1), minlength=palette.colors)
                    for (name, label), row in zip(batch.samples, tokens, strict=True):
                        append(tar, name, row, label)
                count.add(len(batch.images) + len(batch.bad))
        written = Shard(
            name=shard.name,
            bytes=path.stat().st_size,
            sha256=_sha256(path),
            samples=len(shard.images) - len(bad),
        )
        store.upload(shard.name, path)
    part = Part(
        shard=written,
        token_counts=tuple(token_counts.tolist()),
        only_resized=only_resized,
        bad=tuple(bad),
    )
    store.put(part_key(shard), part.model_dump_json().encode())


@dataclass
class _Batch:
    """Images on their way into a shard."""

    images: list[NDArray[np.uint8]] = field(default_factory=list)
    samples: list[tuple[str, int]] = field(default_factory=list)  # key and label of each
    bad: list[BadItem] = field(default_factory=list)
    only_resized: int = 0


def _add_image(
    batch: _Batch, shard: PlannedShard, place: int, source: Source, options: ShardOptions
) -> None:
    """Decodes and prepares the image at `place` of the shard, or notes that it is bad."""
    number = int(shard.images[place])
    record = source.record(number)
    try:
        image = source.image(number)
    except BadImage as error:
        batch.bad.append(BadItem(place=place, name=record.name, reason=str(error)))
        return
    resolution, resampling = options.resolution, options.resampling
    if shard.split == "train" and options.augment:
        crop = int(shard.crops[place])
        pixels = random_crop(
            image, resolution, resampling, seed=options.seed, name=record.name, crop=crop
        )
    else:
        pixels = centre_crop(image, resolution, resampling)
    batch.images.append(pixels)
    batch.samples.append((key(shard.split, shard.first + place), record.label))
    batch.only_resized += is_only_resized(image)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
