"""Images a second from shards on this machine: our loader against plain `webdataset`.

Both read the same 32x32 shards in a folder, in one process, in batches of 128, and give tokens
uint16 and labels as arrays. Ours has one reading thread and shuffles exactly; the peer is
`WebDataset(shards).decode().to_tuple(...).batched(128)`, reads in the order of the shards and need
not shuffle. The files are in the page cache for both. Over an epoch both must give the same
samples. A second figure opens the data set anew for each epoch, so that it contains our reading of
the index and the sha256 of every shard, which the peer does not check.

Predicted: 40 times as fast; opened anew, 20 times.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import igpt
from benchmarks.harness import Figure, compare, timed
from benchmarks.photos import crops
from igpt.data import ArraySource, Dataset, Loader, open_dataset, write_shards

BATCH = 128

Batch = tuple[NDArray[np.uint16], NDArray[np.int64]]


def figures(quick: bool, folder: Path) -> list[Figure]:
    """An epoch with the data set open, and one that opens it."""
    images = crops(16 if quick else 5)
    images = images[: len(images) // BATCH * BATCH]
    palette = igpt.Palette.fit(images[::50].reshape(-1, 3)[::16], 16)
    source = ArraySource(images, np.arange(len(images)) % 10)
    write_shards(
        source,
        folder / "data",
        resolution=32,
        palette=palette,
        samples_per_shard=512 if quick else 4096,
        validation_fraction=0.0,
        augment=False,
    )
    data = open_dataset(folder / "data")
    shards = [str(folder / "data" / shard.name) for shard in data.index.split("train").shards]

    assert _samples(_ours(data)) == _samples(_theirs(shards))
    rounds = 2 if quick else 7
    work = f"an epoch of {len(images)} images"
    peers = {"webdataset": timed(lambda: _exhaust(_theirs(shards)))}
    return [
        figure
        for name, ours in (
            (work, lambda: _exhaust(_ours(data))),
            (f"{work}, opened anew", lambda: _exhaust(_ours(open_dataset(folder / "data")))),
        )
        for figure in compare(
            name, timed(ours), peers, rounds=rounds, amount=len(images), unit="images"
        )
    ]


def _ours(data: Dataset) -> Iterator[Batch]:
    with Loader(data, split="train", global_batch=BATCH) as loader:
        for _, tokens, labels in islice(loader, data.samples("train") // BATCH):
            yield tokens, labels


def _theirs(shards: list[str]) -> Iterator[Batch]:
    import webdataset

    dataset: Any = webdataset.WebDataset(shards, shardshuffle=False).decode()
    yield from dataset.to_tuple("tokens.npy", "cls").batched(BATCH)


def _exhaust(batches: Iterator[Batch]) -> None:
    for tokens, labels in batches:
        assert tokens.shape == (BATCH, 1024)
        assert len(labels) == BATCH


def _samples(batches: Iterator[Batch]) -> list[tuple[bytes, int]]:
    """All samples of an epoch, in an order that does not depend on how they came."""
    return sorted(
        (row.tobytes(), int(label))
        for tokens, labels in batches
        for row, label in zip(tokens, labels, strict=True)
    )
