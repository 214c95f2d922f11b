"""Carries out `generate`: draws samples and completions, and writes them as tokens and pictures.

    samples/parts/<batch>.npy    the tokens of each batch, as soon as it is drawn
    samples/<what>.npy, .png     the whole, once all batches are there

Rank r draws the batches i with i % world_size == r and passes over those that are there, so an
interruption costs one batch. A batch is a function of model, data and configuration alone: it does
not matter who draws it, nor when.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igpt.data import Dataset
from igpt.errors import DataCorrupt
from igpt.jobs.context import Context
from igpt.jobs.entries.common import dataset_of, pick_device
from igpt.jobs.generate import GenerateConfig
from igpt.jobs.references import open_reference
from igpt.model.generation import generate
from igpt.model.interchange import load_model
from igpt.storage import Store
from igpt.storage.pieces import PIECES_SECONDS, await_pieces

Tokens = NDArray[np.uint16]

#: Between the seeds of two completions of one image, more than there are images.
_SEEDS_APART = 1_000_003
_PARTS = "samples/parts"


@dataclass(frozen=True)
class Batch:
    """Images that are drawn at once: `first` to `first + count - 1` of their kind."""

    first: int
    count: int
    completion: int  # which completion of each image it is, from 1; 0: from nothing
    seed: int

    @property
    def key(self) -> str:
        """Where its tokens lie, among the parts."""
        kind = f"completions-{self.completion:04d}" if self.completion else "samples"
        return f"{kind}-{self.first:08d}.npy"


def plan_batches(config: GenerateConfig) -> list[Batch]:
    """All batches: the samples, then one completion of every image, then the next."""

    def of(images: int, completion: int) -> list[Batch]:
        seed = config.seed + _SEEDS_APART * completion
        return [
            Batch(first, min(config.batch, images - first), completion, seed + first)
            for first in range(0, images, config.batch)
        ]

    batches = of(config.samples, 0)
    for completion in range(1, config.completions_each + 1):
        batches += of(config.completions, completion)
    return batches


def run(
    config: GenerateConfig,
    context: Context,
    *,
    timeout: float = PIECES_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Writes samples/*.npy (tokens) and samples/*.png (contact sheets) into the run.

    Raises IgptError where no other rank has drawn a batch for `timeout` seconds.
    """
    data = dataset_of(context, config.data or "", context.run.spec().inputs["data"])
    originals = _originals(data, config)
    batches = plan_batches(config)
    parts = context.run.record.sub(_PARTS)
    context.keeps_pieces(parts)

    def drawn() -> set[str]:
        """The batches that are there; rank 0 says how many images that is."""
        there = set(parts.children())
        if context.rank == 0:
            done = sum(batch.count for batch in batches if batch.key in there)
            total = sum(batch.count for batch in batches)
            context.sink.progress(done=done, total=total, unit="images")
        return there

    _draw(config, context, batches[context.rank :: context.world_size], originals, parts, drawn)
    if context.rank != 0:
        return {}
    await_pieces(
        [batch.key for batch in batches],
        drawn,
        what=f"{parts.uri}: batches",
        tick=context.check_stop,
        timeout=timeout,
        clock=clock,
        sleep=sleep,
    )
    made = _assemble(config, batches, originals, parts, data.index.positions)
    _write(context.run.record, made, data)
    return {"model": config.model, "data": config.data, **{k: len(v) for k, v in made.items()}}


def _draw(
    config: GenerateConfig,
    context: Context,
    batches: list[Batch],
    originals: Tokens,
    parts: Store,
    drawn: Callable[[], set[str]],
) -> None:
    """Draws those of the batches that are not there, and keeps each at once."""
    there = drawn()
    missing = [batch for batch in batches if batch.key not in there]
    if not missing:
        return
    device = pick_device(config.device, context.local_rank)
    model = load_model(open_reference(context.root, config.model).uri, device)
    prompts = originals[:, : model.config.positions // 2]
    for batch in missing:
        context.check_stop()
        tokens = generate(
            model,
            batch.count,
            prompt=prompts[batch.first :][: batch.count] if batch.completion else None,
            temperature=config.temperature,
            seed=batch.seed,
        )
        # The first that comes stays: one that was read never changes.
        parts.create(batch.key, _npy(tokens))
        drawn()


def _assemble(
    config: GenerateConfig, batches: list[Batch], originals: Tokens, parts: Store, positions: int
) -> dict[str, Tokens]:
    """`samples` [N, positions]; `originals` [C, positions], `completions` [C, each, positions]."""
    kinds: dict[int, list[Tokens]] = {}
    for batch in batches:
        tokens = _read(parts, batch, positions)
        kinds.setdefault(batch.completion, []).append(tokens)
    whole = {completion: np.concatenate(tokens) for completion, tokens in kinds.items()}
    made = {"samples": whole.pop(0)} if config.samples else {}
    if whole:
        made["originals"] = originals
        made["completions"] = np.stack([whole[number] for number in sorted(whole)], axis=1)
    return made


def _read(parts: Store, batch: Batch, positions: int) -> Tokens:
    """The tokens of a batch that is there: [count, positions]."""
    try:
        tokens: Tokens = np.load(io.BytesIO(parts.get(batch.key)), allow_pickle=False)
    except (ValueError, EOFError):
        tokens = np.empty(0, np.uint16)
    if tokens.dtype != np.uint16 or tokens.shape != (batch.count, positions):
        raise DataCorrupt(
            f"{parts.uri}/{batch.key} is not what was written there",
            mend="Delete it and resume the run: that batch is drawn anew",
        )
    return tokens


def _write(record: Store, made: dict[str, Tokens], data: Dataset) -> None:
    """Tokens and contact sheets."""
    for name, tokens in made.items():
        record.put(f"samples/{name}.npy", _npy(tokens))
    palette, size = data.palette(), data.index.resolution
    if "samples" in made:
        sheet = contact_sheet(palette.decode(made["samples"], size=size), columns=8)
        record.put("samples/samples.png", sheet)
    if "completions" in made:
        shown = np.concatenate(
            [
                _as_given(palette.decode(made["originals"], size=size))[:, None],
                palette.decode(made["completions"].reshape(-1, size * size), size=size).reshape(
                    *made["completions"].shape[:2], size, size, 3
                ),
                palette.decode(made["originals"], size=size)[:, None],
            ],
            axis=1,
        )  # a row each: what was given, the completions, the original
        sheet = contact_sheet(shown.reshape(-1, size, size, 3), columns=shown.shape[1])
        record.put("samples/completions.png", sheet)


def _originals(data: Dataset, config: GenerateConfig) -> Tokens:
    """Images to complete, spread evenly over the split: [C, positions]."""
    if not config.completions:
        return np.empty((0, data.index.positions), np.uint16)
    assert config.split is not None, "settled at submission"
    there = data.samples(config.split)
    numbers = np.arange(config.completions) * there // config.completions
    return data.tokens(config.split, numbers)


def _as_given(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images uint8 [N, R, R, 3] with grey for what the model did not see."""
    size = images.shape[1]
    hidden = (np.arange(size * size) >= size * size // 2).reshape(size, size, 1)
    given: NDArray[np.uint8] = np.where(hidden, np.uint8(200), images)
    return given


def contact_sheet(images: NDArray[np.uint8], *, columns: int) -> bytes:
    """Images uint8 [N, R, R, 3] side by side with a gap, enlarged without smoothing, as PNG."""
    size = images.shape[1]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (size + 1) + 1, columns * (size + 1) + 1, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = (1 + place * (size + 1) for place in divmod(number, columns))
        sheet[top : top + size, left : left + size] = image
    scale = max(1, 800 // sheet.shape[1])
    file = io.BytesIO()
    enlarged = (sheet.shape[1] * scale, sheet.shape[0] * scale)
    Image.fromarray(sheet).resize(enlarged, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def _npy(tokens: Tokens) -> bytes:
    file = io.BytesIO()
    np.save(file, tokens, allow_pickle=False)
    return file.getvalue()
