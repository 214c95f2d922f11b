"""The pass over a data set that writes every layer's pooled features (`igpt.evaluation.features`).

Any number of workers share it, and any of them may be interrupted: a chunk is finished when its
part is there, and whoever comes back passes over it. So may several jobs, whose bytes may differ in
a last bit: the first to write the part wins, and the files of others have other names.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from igpt.errors import DataCorrupt, IgptError, UserError
from igpt.evaluation.features import MEND, Chunk, SplitIndex, read_index
from igpt.model.config import ModelConfig
from igpt.storage import Store
from igpt.storage.files import explained, reserve
from igpt.storage.pieces import PIECES_SECONDS, await_pieces

if TYPE_CHECKING:
    from igpt.data import Dataset
    from igpt.model.transformer import ImageGPT

_LARGEST = float(np.finfo(np.float16).max)
#: What a chunk may take, as an interruption costs as much: 250 s at 1 TFLOP/s.
_CHUNK_FLOPS = 2.5e14
_LARGEST_CHUNK, _SMALLEST_CHUNK = 4096, 32  # images
#: A folder of more chunks is slow to list and to read. So each may take longer, in a pass that has
#: days of work.
_MOST_CHUNKS = 2000

#: The chunks of a split, and the rows that each holds.
_Plan = list[tuple[str, range]]


def model_digest(model: "ImageGPT") -> str:
    """sha256, hexadecimal, of the network's shape and each parameter's name, type and bytes.

    It depends on nothing else, so an untrained network has a digest of its own for each seed.
    """
    import torch

    total = hashlib.sha256(model.config.model_dump_json().encode())
    for name, parameter in sorted(model.named_parameters()):
        total.update(f"\n{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        values = parameter.detach().cpu().contiguous().reshape(-1)
        total.update(values.view(torch.uint8).numpy().data)
    return total.hexdigest()


def chunk_size(model: ModelConfig, samples: int) -> int:
    """Images of one chunk of a split of `samples`: 4,096, halved until they take a few minutes.

    It depends on model and data alone, so that all workers and attempts agree on the chunks.
    """
    each = model.positions * model.training_flops_per_token() / 3  # a pass without gradients
    chunk = _LARGEST_CHUNK
    while (
        chunk > _SMALLEST_CHUNK
        and chunk * each > _CHUNK_FLOPS
        and samples <= _MOST_CHUNKS * (chunk // 2)
    ):
        chunk //= 2
    return chunk


def write_features(
    model: "ImageGPT",
    data: "Dataset",
    split: str,
    store: Store,
    *,
    batch: int = 128,
    chunk: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    timeout: float = PIECES_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Writes this rank's chunks of a split to `store`, the folder of one key; returns how many.

    Chunk c, of `chunk` samples (None: `chunk_size`), is computed by rank c % world_size, `batch`
    images at once but of one chunk, with the model as it is but moved to `device`. Chunks that are
    there already are passed over. `progress(done, total)` counts the samples of this rank, batch by
    batch; what it raises ends the pass, and of a chunk that is not finished nothing is kept. Rank 0
    waits for the others' chunks, while it repeats its last progress, and writes the index; the
    others return before that.

    Raises UserError where the data does not fit the model, NotFound for a split that there is not,
    IgptError for features that float16 cannot hold, and where no other rank has finished a chunk
    for `timeout` seconds.
    """
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is not one of {world_size} workers")
    if (model.config.resolution, model.config.colors) != (data.index.resolution, data.index.colors):
        raise UserError(
            f"the data has {data.index.resolution}x{data.index.resolution} images in "
            f"{data.index.colors} colours",
            expected=f"those of the model, {model.config.resolution}x{model.config.resolution} "
            f"in {model.config.colors} colours",
        )
    samples = data.samples(split)
    if store.exists(f"{split}.json"):
        found = read_index(store, split).samples
        if found != samples:
            raise UserError(
                f"{store.uri} holds features of {found} {split} samples",
                expected=f"{samples}, as in the data",
                mend="Write them to the folder of their own key",
            )
        return 0

    model.to(device)
    plan = _plan(split, samples, chunk or chunk_size(model.config, samples))
    mine = plan[rank::world_size]
    finished = _finished(store, mine)
    written = done = 0
    total = sum(len(rows) for _, rows in mine)

    def tell(more: int = 0) -> None:
        if progress is not None:
            progress(done + more, total)

    for name, rows in mine:
        if name not in finished and not _finished(store, [(name, rows)], name):
            written += _write_chunk(model, data, split, store, name, rows, batch, device, tell)
        done += len(rows)
        tell()
    if rank == 0:
        chunks: dict[str, Chunk] = {}

        def come() -> dict[str, Chunk]:
            chunks.update(_finished(store, [one for one in plan if one[0] not in chunks]))
            return chunks

        await_pieces(
            [name for name, _ in plan],
            come,
            what=f"{store.uri}: chunks",
            tick=tell,
            timeout=timeout,
            clock=clock,
            sleep=sleep,
        )
        index = SplitIndex(
            samples=samples,
            layers=model.config.layers + 1,
            width=model.config.width,
            chunks=tuple(chunks[name] for name, _ in plan),
        )
        store.put(f"{split}.json", (index.model_dump_json(indent=1) + "\n").encode())
    return written


def _plan(split: str, samples: int, chunk: int) -> _Plan:
    """The chunks of a split. Those of another size have other names, and are never mixed in."""
    return [
        (f"{split}-{chunk}-{number:06d}", range(first, min(first + chunk, samples)))
        for number, first in enumerate(range(0, samples, chunk))
    ]


def _write_chunk(
    model: "ImageGPT",
    data: "Dataset",
    split: str,
    store: Store,
    name: str,
    rows: range,
    batch: int,
    device: str,
    tell: Callable[[int], None],
) -> bool:
    """Writes the chunk's file and then its part; tells how many samples of it are done before.

    Returns False where another job was first; its bytes then differ, and are those that stay.
    """
    import torch

    shape = (model.config.layers + 1, len(rows), model.config.width)
    with tempfile.TemporaryDirectory(prefix="igpt-features-") as folder:
        path = Path(folder) / f"{name}.npy"
        with explained("written", path):
            features = np.lib.format.open_memmap(path, "w+", np.dtype("<f2"), shape)
            reserve(path)
        for start in range(0, len(rows), batch):
            numbers = np.arange(rows[start], min(rows[start] + batch, rows.stop))
            tokens = torch.from_numpy(data.tokens(split, numbers).astype(np.int64)).to(device)
            pooled = model.features(tokens).float().cpu().numpy()
            _check_range(pooled)
            features[:, start : start + len(numbers)] = pooled
            if start + batch < len(rows):  # else it is told when the chunk is there
                tell(start + batch)
        with explained("written", path):
            features.flush()
            del features
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        part = Chunk(
            name=_file(name, digest),
            bytes=path.stat().st_size,
            sha256=digest,
            samples=len(rows),
            first=rows.start,
        )
        store.upload(part.name, path)
    content = part.model_dump_json().encode()
    if store.create(_part(name), content):
        return True
    first = _finished(store, [(name, rows)], name).get(name)
    if first is None:  # a part whose file is gone
        store.put(_part(name), content)
    elif first.name != part.name:
        store.delete([part.name])
        return False
    return True


def _check_range(pooled: NDArray[np.float32]) -> None:
    """Raises IgptError where float16 cannot hold features [L+1, n, d]."""
    highest = np.abs(pooled).max(axis=(1, 2))
    if not (highest <= _LARGEST).all():  # not-a-number is refused too
        layer = int(np.flatnonzero(~(highest <= _LARGEST))[0])
        raise IgptError(
            f"features of layer {layer} reach {highest[layer]:g}",
            expected=f"at most {_LARGEST:g}, which is what float16 holds",
            mend="The network has diverged: use an earlier checkpoint",
        )


def _finished(store: Store, plan: _Plan, prefix: str = "") -> dict[str, Chunk]:
    """The chunks of `plan` that are there: written for these rows, with the size it should have.

    prefix: how all their names begin.
    """
    sizes = {found.key: found.size for found in store.objects(prefix)}
    finished = {}
    for name, rows in plan:
        if _part(name) in sizes:
            content = store.get(_part(name))
            try:
                part = Chunk.model_validate_json(content)
            except ValidationError:
                raise DataCorrupt(
                    f"{store.uri}/{_part(name)} is not what was written", mend=MEND
                ) from None
            wanted = (_file(name, part.sha256), rows.start, len(rows))
            same = (part.name, part.first, part.samples) == wanted
            if same and sizes.get(part.name) == part.bytes:
                finished[name] = part
    return finished


def _file(name: str, sha256: str) -> str:
    """A chunk's file. Other bytes have another name, so none is ever written over."""
    return f"{name}-{sha256[:16]}.npy"


def _part(name: str) -> str:
    return f"{name}.json"
