"""Reads a written data set: samples by number, as arrays, without parsing.

A shard is a strided array (`igpt.data.shard_format`), so its file is memory-mapped and a batch is
one indexing of each shard that it touches.
"""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igpt.data.index import INDEX, PALETTE, Index, Shard, load_index
from igpt.data.palette import Palette
from igpt.data.shard_cache import ShardCache
from igpt.data.stores import as_store
from igpt.errors import DataCorrupt
from igpt.storage import Store

#: Shards mapped at a time; each holds a file descriptor, of which a process often has 1,024.
_MAPPED = 256
#: Shards fetched at a time.
_FETCHED = 8

_Columns = tuple[NDArray[np.uint16], NDArray[np.bytes_]]


class Dataset:
    """A written data set. Samples of a split are numbered from 0, in the order of its shards."""

    def __init__(self, store: Store, index: Index, digest: str, cache_bytes: int | None) -> None:
        self.index = index
        self.digest = digest  # sha256 of the bytes of index.json
        self.remote = store.local_path(INDEX) is None  # shards have to be fetched
        self._store = store
        self._cache = ShardCache(store, cache_bytes)
        self._mapped: OrderedDict[str, _Columns] = OrderedDict()
        self._lock = Lock()

    def samples(self, split: str) -> int:
        """How many samples the split has. Raises NotFound for a split that there is not."""
        return self.index.split(split).samples

    def tokens(self, split: str, numbers: NDArray[np.integer[Any]]) -> NDArray[np.uint16]:
        """The tokens of samples `numbers`, int [k]: uint16 [k, positions].

        Raises DataCorrupt, which names the shard, where stored bytes are not those written.
        """
        return self.read(split, numbers)[0]

    def read(
        self, split: str, numbers: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """The tokens uint16 [k, positions] and labels int64 [k] of samples `numbers`, int [k]."""
        shards = self.index.split(split).shards
        which, places = self._find(split, numbers)
        self._fetch([shards[shard] for shard in np.unique(which)])
        tokens = np.empty((len(which), self.index.positions), np.uint16)
        labels = np.empty(len(which), np.int64)
        for shard in np.unique(which):
            here = np.flatnonzero(which == shard)
            mapped_tokens, mapped_labels = self._columns(shards[shard])
            tokens[here] = mapped_tokens[places[here]]
            labels[here] = mapped_labels[places[here]].astype(np.int64)
        return tokens, labels

    def labels(self, split: str) -> NDArray[np.int64]:
        """The label of each sample, int64 [N]; -1 = none."""
        return self._column(split, "label")

    def source_order(self, split: str) -> NDArray[np.int64]:
        """The place of each sample's image in the source, int64 [N]; crops of one share it."""
        return self._column(split, "image")

    def palette(self) -> Palette:
        """The colours that the tokens mean. Raises DataCorrupt where they are not those written."""
        palette = Palette.from_bytes(self._store.get(PALETTE), PALETTE)
        if palette.digest != self.index.palette_digest:
            raise DataCorrupt(f"{self._store.uri}/{PALETTE} is not the palette of its index")
        return palette

    def fetch(self, split: str, numbers: NDArray[np.integer[Any]]) -> None:
        """Brings the shards of samples `numbers` to this machine, if they are not there yet."""
        shards = self.index.split(split).shards
        self._fetch([shards[shard] for shard in np.unique(self._find(split, numbers)[0])])

    def as_webdataset(self, split: str) -> Any:
        """The split as a `webdataset` pipeline, undecoded, in the order of the shards.

        Each shard is fetched and proven when its turn comes. `.decode()` makes arrays and ints.
        """
        import webdataset

        files = partial(_files, self._cache, self.index.split(split).shards)
        dataset = webdataset.FluidWrapper(files)
        dataset.append(webdataset.split_by_worker)
        dataset.append(webdataset.tarfile_to_samples())
        return dataset

    def _find(
        self, split: str, numbers: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard of each sample, and its place there."""
        asked = np.asarray(numbers, dtype=np.int64)
        ends = self._ends(split)
        if asked.size and not 0 <= int(asked.min()) <= int(asked.max()) < ends[-1]:
            raise IndexError(
                f"samples {asked.min()} to {asked.max()} of {split}, which has {ends[-1]}"
            )
        which = np.searchsorted(ends, asked, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        return which, asked - starts[which]

    def _fetch(self, shards: list[Shard]) -> None:
        """Fetches those of the shards that are missing, several at a time."""
        missing = [
            shard
            for shard in shards
            if shard.name not in self._mapped and self._cache.missing(shard)
        ]
        if missing:
            with ThreadPoolExecutor(min(_FETCHED, len(missing)), "igpt-fetch") as pool:
                list(pool.map(self._cache.file, missing))

    def _ends(self, split: str) -> NDArray[np.int64]:
        return np.cumsum([shard.samples for shard in self.index.split(split).shards])

    def _columns(self, shard: Shard) -> _Columns:
        """Tokens and labels of a shard, as views of its mapped file."""
        with self._lock:
            columns = self._mapped.get(shard.name)
            if columns is None:
                columns = _columns(self._cache.map(shard), shard.samples, self.index)
                self._mapped[shard.name] = columns
                if len(self._mapped) > _MAPPED:
                    self._mapped.popitem(last=False)
            self._mapped.move_to_end(shard.name)
            return columns

    def _column(self, split: str, name: str) -> NDArray[np.int64]:
        """A column of the samples table, int64 [N], of the split's rows."""
        import pyarrow.compute as pc

        self.index.split(split)
        table = self._samples_table
        column: NDArray[np.int64] = (
            table.filter(pc.equal(table["split"], split))[name].to_numpy().astype(np.int64)
        )
        return column

    @cached_property
    def _samples_table(self) -> Any:
        import pyarrow.parquet as pq

        written = self.index.samples_table
        content = self._store.get(written.name)
        if hashlib.sha256(content).hexdigest() != written.sha256:
            raise DataCorrupt(
                f"{self._store.uri}/{written.name} is not what was written there",
                expected=f"{written.bytes} bytes of sha256 {written.sha256}",
                mend=f"Delete it and {INDEX}, and run the shard job again",
            )
        return pq.read_table(io.BytesIO(content), columns=["split", "image", "label"])


def open_dataset(uri: str | Path | Store, *, cache_bytes: int | None = None) -> Dataset:
    """The data set at `uri`: its index is read now, its shards when they are asked for.

    Shards of a remote store are kept in the cache of this machine (IGPT_CACHE), which holds at
    most `cache_bytes`, by default half of what its disk could give it. Raises NotFound where there
    is no finished data set.
    """
    store = as_store(uri)
    index, digest = load_index(store)
    return Dataset(store, index, digest, cache_bytes)


def _columns(content: NDArray[np.uint8], samples: int, index: Index) -> _Columns:
    """Views of a shard's bytes: tokens uint16 [samples, positions], labels as text [samples]."""
    tokens: NDArray[np.uint16] = np.ndarray(
        (samples, index.positions), "<u2", content.data, index.token_offset, (index.stride, 2)
    )
    labels: NDArray[np.bytes_] = np.ndarray(
        (samples,), f"S{index.label_digits}", content.data, index.label_offset, (index.stride,)
    )
    return tokens, labels


def _files(cache: ShardCache, shards: tuple[Shard, ...]) -> Iterator[dict[str, str]]:
    for shard in shards:
        yield {"url": str(cache.file(shard))}
