"""Which image and crop goes into which shard: a pure function of the source and the options.

Every worker computes the whole plan and writes its part of it, so nothing has to be agreed on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igpt.data.index import ShardOptions, SplitName
from igpt.data.randomness import permutation
from igpt.data.sources import Source
from igpt.errors import UserError


@dataclass(frozen=True, eq=False)
class PlannedShard:
    """The samples of one shard, before anything is decoded: item i of the split is the crop
    `crops[i - first]` of image `images[i - first]` of the source."""

    name: str
    split: SplitName
    first: int
    images: NDArray[np.int64]
    crops: NDArray[np.int64]


def plan_shards(source: Source, options: ShardOptions) -> list[PlannedShard]:
    """The shards of all splits, in the order of the index.

    Where the source has no validation (or test) split, the fraction of train that the options ask
    for is held out, at least one image. Only train has more than one crop. The items of each split
    are shuffled once, so that a shard is a fair sample of its split.
    """
    shards = []
    for split, images in _splits(source, options).items():
        copies = options.crops if split == "train" else 1
        order = permutation(len(images) * copies, "shuffle", options.seed, split)
        items, crops = np.repeat(images, copies)[order], np.tile(np.arange(copies), len(images))
        crops = crops[order]
        for place, first in enumerate(range(0, len(items), options.samples_per_shard)):
            part = slice(first, first + options.samples_per_shard)
            name = f"{split}-{place:06d}.tar"
            shards.append(PlannedShard(name, split, first, items[part], crops[part]))
    return shards


def _splits(source: Source, options: ShardOptions) -> dict[SplitName, NDArray[np.int64]]:
    """The images of each split that is not empty, in the order of the source."""
    of_split: dict[SplitName, NDArray[np.int64]] = {}
    given = np.array([source.record(i).split for i in range(len(source))])
    for split in ("train", "validation", "test"):
        of_split[split] = np.flatnonzero(given == split)

    train = of_split["train"]
    shuffled = train[permutation(len(train), "hold out", options.seed)]
    held_out: list[tuple[SplitName, float]] = [
        ("validation", options.validation_fraction),
        ("test", options.test_fraction),
    ]
    for split, fraction in held_out:
        if len(train) and fraction and not len(of_split[split]):
            count = max(1, round(fraction * len(train)))
            of_split[split], shuffled = np.sort(shuffled[:count]), shuffled[count:]
    if len(train) and not len(shuffled):
        raise UserError(
            f"nothing is left of the {len(train)} training images once others are held out",
            mend="Hold out a smaller fraction",
        )
    of_split["train"] = np.sort(shuffled)
    return {split: images for split, images in of_split.items() if len(images)}
