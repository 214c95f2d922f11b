"""From finished shards to a finished data set: the table of samples and the index."""

import hashlib
import io

import numpy as np
from pydantic import ValidationError

from igpt.config import Strict
from igpt.data.index import (
    INDEX,
    SAMPLES,
    File,
    Index,
    PassedOver,
    Shard,
    ShardOptions,
    Split,
    SplitName,
    write_index,
)
from igpt.data.palette import Palette
from igpt.data.plan import PlannedShard
from igpt.data.preprocessing import Preprocessing
from igpt.data.shard_format import LABEL_DIGITS, geometry, key
from igpt.data.sources import Source
from igpt.errors import DataCorrupt, UserError
from igpt.storage import Store


class BadItem(Strict):
    """An image of a shard that could not be read: its place among the planned ones, and why."""

    place: int
    name: str
    reason: str


class Part(Strict):
    """What a worker notes of a shard that it has written."""

    shard: Shard
    token_counts: tuple[int, ...]
    only_resized: int
    bad: tuple[BadItem, ...]


def part_key(shard: PlannedShard) -> str:
    """Where the part of a shard lies."""
    return f"parts/{shard.name.removesuffix('.tar')}.json"


def read_part(store: Store, shard: PlannedShard) -> Part:
    """The part of a written shard. Raises NotFound, or DataCorrupt for what is none."""
    try:
        return Part.model_validate_json(store.get(part_key(shard)))
    except ValidationError:
        raise DataCorrupt(
            f"{store.uri}/{part_key(shard)} is not what was written there",
            mend="Delete it and start the same job again: the shard is written anew",
        ) from None


def assemble(
    store: Store,
    plan: list[PlannedShard],
    parts: list[Part],
    source: Source,
    palette: Palette,
    options: ShardOptions,
) -> None:
    """Writes samples.parquet and then index.json."""
    table = _samples_table(plan, parts, source)
    store.put(SAMPLES, table)
    stride, token_offset, label_offset = geometry(options.resolution**2)
    bad = {item.name: item.reason for part in parts for item in part.bad}
    index = Index(
        resolution=options.resolution,
        colors=palette.colors,
        palette_digest=palette.digest,
        classes=source.classes,
        stride=stride,
        token_offset=token_offset,
        label_offset=label_offset,
        label_digits=LABEL_DIGITS,
        splits=_splits(plan, parts),
        samples_table=File(
            name=SAMPLES, bytes=len(table), sha256=hashlib.sha256(table).hexdigest()
        ),
        bad_images=tuple(PassedOver(name=name, reason=bad[name]) for name in sorted(bad)),
        source={**source.describe(), "digest": source.digest},
        options=options,
        preprocessing=Preprocessing(
            resolution=options.resolution,
            resampling=options.resampling,
            train="random crop" if options.augment else "centre crop",
            only_resized=sum(part.only_resized for part in parts),
        ),
    )
    store.put(INDEX, write_index(index))


def _splits(plan: list[PlannedShard], parts: list[Part]) -> dict[SplitName, Split]:
    """The splits with their shards, but for those of which no image could be read."""
    splits: dict[SplitName, Split] = {}
    for split in dict.fromkeys(shard.split for shard in plan):
        found = [
            part
            for shard, part in zip(plan, parts, strict=True)
            if shard.split == split and part.shard.samples
        ]
        if found:
            counts = np.sum([part.token_counts for part in found], axis=0)
            splits[split] = Split(
                samples=sum(part.shard.samples for part in found),
                shards=tuple(part.shard for part in found),
                token_counts=tuple(counts.tolist()),
            )
    if not splits:
        raise UserError("not one image of the source could be read")
    return splits


def _samples_table(plan: list[PlannedShard], parts: list[Part], source: Source) -> bytes:
    """One row for each sample, in the order in which samples are numbered, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for shard, part in zip(plan, parts, strict=True):
        kept = np.delete(np.arange(len(shard.images)), [item.place for item in part.bad])
        images = shard.images[kept]
        records = [source.record(int(image)) for image in images]
        tables.append(
            pa.table(
                {
                    "key": [key(shard.split, shard.first + int(place)) for place in kept],
                    "split": [shard.split] * len(kept),
                    "name": [record.name for record in records],
                    "image": images,  # the place in the source
                    "crop": shard.crops[kept].astype(np.int32),
                    "label": np.array([record.label for record in records], np.int64),
                    "class": [_class(source, record.label) for record in records],
                },
                schema=pa.schema(
                    [
                        ("key", pa.string()),
                        ("split", pa.string()),
                        ("name", pa.string()),
                        ("image", pa.int64()),
                        ("crop", pa.int32()),
                        ("label", pa.int64()),
                        ("class", pa.string()),
                    ]
                ),
            )
        )
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    return buffer.getvalue()


def _class(source: Source, label: int) -> str | None:
    return source.classes[label] if label >= 0 else None
