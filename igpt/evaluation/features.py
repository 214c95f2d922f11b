"""Every layer's pooled features of a data set, made in one pass and read layer by layer.

Chen et al., "Generative Pretraining from Pixels" (ICML 2020), section 2.4: the features of layer l
are the mean over positions of its normed input (`ImageGPT.features`), L+1 layers with ln_f's. In
the folder of one key (`features_key`):

    train-4096-000000-<sha256>.npy ... float16 [L+1, n, d], the samples of a chunk (here at most
                                       4,096) in the data set's order; 16 digits of its sha256
    train-4096-000000.json             which file is the finished chunk, written once, after it
    train.json                         last, when all chunks of the split are there

A split's numbers are the data set's, so row i belongs to `data.labels(split)[i]`.
"""

import hashlib
import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from igpt.config import Strict
from igpt.data.index import Shard
from igpt.data.shard_cache import ShardCache
from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.storage import Store

_SPLITS = ("train", "validation", "test")
#: What to do about features that are not what was written.
MEND = "Delete that folder of features and compute them again"


class Chunk(Shard):
    """One file of features: the samples `first` to `first + samples - 1` of its split."""

    first: int


class SplitIndex(Strict):
    """The features of one split."""

    format: Literal["igpt-features"] = "igpt-features"
    version: Literal[1] = 1
    samples: int = Field(gt=0)
    layers: int = Field(gt=1)  # L+1: the blocks' inputs, and ln_f
    width: int = Field(gt=0)
    chunks: tuple[Chunk, ...]


def features_key(model_digest: str, data_digest: str) -> str:
    """The name of the folder for a model's features of a data set: 32 hexadecimal characters."""
    text = f"igpt-features 1 mean-pooled ln_1\n{model_digest}\n{data_digest}\n"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Features:
    """Stored features. Row i of a split is sample i of the data set's split."""

    def __init__(
        self, store: Store, splits: dict[str, SplitIndex], cache_bytes: int | None
    ) -> None:
        self._store = store
        self._cache = ShardCache(store, cache_bytes)
        self._splits = splits
        first = next(iter(splits.values()))
        self.layers = first.layers  # L+1, numbered from 0; the last is ln_f's
        self.width = first.width
        self.splits = tuple(splits)

    def samples(self, split: str) -> int:
        """How many samples the split has. Raises NotFound for a split that is not there."""
        return self._index(split).samples

    def layer(self, split: str, number: int) -> NDArray[np.float16]:
        """The features of layer `number`, 0 to L, of all samples of the split: float16 [N, d].

        Only this layer is read from the chunks' files, which are proven by their sha256 when they
        are first opened. Raises DataCorrupt where their bytes are not those written.
        """
        index = self._index(split)
        if not 0 <= number < index.layers:
            raise UserError(f"there is no layer {number}", expected=f"0 to {index.layers - 1}")
        rows = np.empty((index.samples, index.width), np.float16)
        for chunk in index.chunks:
            rows[chunk.first : chunk.first + chunk.samples] = self._map(chunk, index)[number]
        return rows

    def _index(self, split: str) -> SplitIndex:
        if split not in self._splits:
            raise NotFound(
                f"{self._store.uri} has no features of {split!r}",
                expected=f"one of {', '.join(self._splits)}",
            )
        return self._splits[split]

    def _map(self, chunk: Chunk, index: SplitIndex) -> NDArray[np.float16]:
        """A chunk as an array on its file, float16 [L+1, n, d]."""
        try:
            content = self._cache.map(chunk)
        except DataCorrupt as error:
            raise DataCorrupt(error.what, expected=error.expected, mend=MEND) from None
        shape = (index.layers, chunk.samples, index.width)
        start = chunk.bytes - 2 * int(np.prod(shape))  # what is before the numbers is the header
        if start < 0 or content[:start].tobytes() != _header(shape):
            raise DataCorrupt(
                f"{self._store.uri}/{chunk.name} is not an array float16 {list(shape)}", mend=MEND
            )
        return np.ndarray(shape, "<f2", content.data, start)


def open_features(store: Store, *, cache_bytes: int | None = None) -> Features:
    """The finished splits in `store`, the folder of one key.

    Files of a remote store are kept in the cache of this machine (IGPT_CACHE), which holds at most
    `cache_bytes`, by default half of what its disk could give it. Raises NotFound where no split is
    finished.
    """
    splits = {split: read_index(store, split) for split in _SPLITS if store.exists(f"{split}.json")}
    if not splits:
        raise NotFound(f"{store.uri} holds no finished features")
    if len({(index.layers, index.width) for index in splits.values()}) > 1:
        raise DataCorrupt(f"{store.uri} holds features of several networks", mend=MEND)
    return Features(store, splits, cache_bytes)


def read_index(store: Store, split: str) -> SplitIndex:
    """The index of a finished split. Raises DataCorrupt where it is none."""
    try:
        return SplitIndex.model_validate_json(store.get(f"{split}.json"))
    except ValidationError as error:
        raise DataCorrupt(
            f"{store.uri}/{split}.json is not an index of features: {error.errors()[0]['msg']}",
            mend=MEND,
        ) from None


def _header(shape: tuple[int, ...]) -> bytes:
    """What an `.npy` file of float16 of this shape begins with."""
    buffer = io.BytesIO()
    described = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
