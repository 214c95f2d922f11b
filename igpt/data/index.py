"""`index.json`: what a written data set is, as strict models, and its loader.

The index is written last, so a data set that has one is whole. It names each shard with its size
and sha256, so what is read can be proven to be what was written, and it counts each token of each
split, so that the entropy of the palette's unigrams costs no pass over the data.
"""

import hashlib
import math
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from igpt.config import Strict
from igpt.data.preprocessing import Filter, Preprocessing
from igpt.errors import DataCorrupt, NotFound
from igpt.storage import Store

INDEX = "index.json"
PALETTE = "palette.npy"
SAMPLES = "samples.parquet"

SplitName = Literal["train", "validation", "test"]


class ShardOptions(Strict):
    """What decides which bytes a data set has, besides its source and its palette."""

    resolution: int = Field(gt=0, le=1024, description="side of the images in pixels")
    samples_per_shard: int = Field(default=10_000, gt=0)
    crops: int = Field(default=1, gt=0, description="samples of each training image")
    seed: int = Field(default=0, ge=0, description="draws the crops, the split and the shuffle")
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="of train, where the source has no validation split"
    )
    test_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="of train, where the source has no test split"
    )
    augment: bool = Field(
        default=True, description="random crops for train; otherwise the centre, as for probes"
    )
    resampling: Filter = Field(default="bicubic", description="Pillow's filter")


class File(Strict):
    """One object of the data set."""

    name: str
    bytes: int
    sha256: str


class Shard(File):
    """One tar of samples."""

    samples: int


class Split(Strict):
    """The shards of one split, in the order in which its samples are numbered."""

    samples: int
    shards: tuple[Shard, ...]
    token_counts: tuple[int, ...]  # [V], over all positions of all samples


class PassedOver(Strict):
    """An image that could not be read and is in no shard."""

    name: str
    reason: str


class Index(Strict):
    """A whole data set of quantized images."""

    format: Literal["igpt-shards"] = "igpt-shards"
    version: Literal[1] = 1
    resolution: int
    colors: int
    palette_digest: str  # of palette.npy beside the index, see `Palette.digest`
    classes: tuple[str, ...]
    stride: int  # bytes from one sample of a shard to the next
    token_offset: int  # bytes from the start of a sample to its tokens
    label_offset: int  # and to its label
    label_digits: int
    splits: dict[SplitName, Split]
    samples_table: File  # key -> name and place in the source, class, crop, split
    bad_images: tuple[PassedOver, ...]
    source: dict[str, Any]
    options: ShardOptions
    preprocessing: Preprocessing

    @property
    def positions(self) -> int:
        """Tokens of one image: resolution squared."""
        return self.resolution**2

    @property
    def crops(self) -> int:
        """Samples of each training image."""
        return self.options.crops

    def split(self, name: str) -> Split:
        """The split. Raises NotFound, with those that there are, for another name."""
        for known, split in self.splits.items():
            if known == name:
                return split
        raise NotFound(
            f"the data set has no split {name!r}", expected=f"one of {', '.join(self.splits)}"
        )

    def unigram_entropy(self, split: str = "validation") -> float:
        """Nats per token of a model that knows only how often each colour occurs in train.

        The cross-entropy of the split's token histogram under that of train, to each of whose
        counts one is added (add-one smoothing), so that a colour never seen has a finite price.
        A trained network should be well below it.
        """
        seen = np.array(self.split("train").token_counts, dtype=np.float64) + 1
        asked = np.array(self.split(split).token_counts, dtype=np.float64)
        return float(-(asked / asked.sum()) @ (np.log(seen) - math.log(seen.sum())))


def write_index(index: Index) -> bytes:
    """The bytes of `index.json`; the same for the same data set, whoever wrote it."""
    return (index.model_dump_json(indent=1) + "\n").encode()


def parse_index(content: bytes, where: str) -> tuple[Index, str]:
    """The index and its digest, the sha256 of its bytes. Raises DataCorrupt where it is none."""
    try:
        return Index.model_validate_json(content), hashlib.sha256(content).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise DataCorrupt(
            f"{where} is not an index of this version: {place}: {first['msg']}",
            mend="Write the data set again, or read it with the version that wrote it",
        ) from None


def load_index(store: Store) -> tuple[Index, str]:
    """The index of the data set in `store`, and its digest.

    Raises NotFound where there is none, which is also so while a data set is being written.
    """
    try:
        content = store.get(INDEX)
    except NotFound:
        begun = bool(store.children())
        mend = "Let the shard job finish; the same job goes on where it stopped" if begun else ""
        state = "is not finished: it has" if begun else "holds no data set: there is"
        raise NotFound(f"{store.uri} {state} no {INDEX}", mend=mend) from None
    return parse_index(content, f"{store.uri}/{INDEX}")
