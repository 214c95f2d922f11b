"""Carries out `generate`: draws samples and completions, and writes them as tokens and pictures."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igpt.data import Dataset
from igpt.jobs.context import Context
from igpt.jobs.entries.common import dataset_of, pick_device
from igpt.jobs.generate import GenerateConfig
from igpt.jobs.references import open_reference
from igpt.model.generation import generate
from igpt.model.interchange import load_model

Tokens = NDArray[np.uint16]

#: Between the seeds of two completions of one image, more than there are images.
_SEEDS_APART = 1_000_003


def run(config: GenerateConfig, context: Context) -> dict[str, Any]:
    """Writes samples/*.npy (tokens) and samples/*.png (contact sheets) into the run."""
    if context.rank != 0:
        return {}
    data = dataset_of(context, config.data or "", context.run.spec().inputs["data"])
    device = pick_device(config.device, context.local_rank)
    model = load_model(open_reference(context.root, config.model).uri, device)
    total = config.samples + config.completions * config.completions_each
    drawn = 0

    def draw(n: int, prompt: Tokens | None, seed: int) -> Tokens:
        """`n` images, a batch at a time; each batch has a seed of its own."""
        nonlocal drawn
        batches = []
        for first in range(0, n, config.batch):
            context.check_stop()
            rows = slice(first, min(first + config.batch, n))
            given = None if prompt is None else prompt[rows]
            count = rows.stop - rows.start
            batches.append(
                generate(
                    model, count, prompt=given, temperature=config.temperature, seed=seed + first
                )
            )
            drawn += count
            context.sink.progress(done=drawn, total=total, unit="images")
        return np.concatenate(batches)

    made: dict[str, Tokens] = {}
    if config.samples:
        made["samples"] = draw(config.samples, None, config.seed)
    if config.completions:
        made["originals"] = _originals(data, config)
        prompts = made["originals"][:, : model.config.positions // 2]
        each = [
            draw(config.completions, prompts, config.seed + _SEEDS_APART * number)
            for number in range(1, config.completions_each + 1)
        ]
        made["completions"] = np.stack(each, axis=1)  # [completions, each, positions]
    record = context.run.record
    for name, tokens in made.items():
        record.put(f"samples/{name}.npy", _npy(tokens))
    palette, size = data.palette(), model.config.resolution
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
    return {"model": config.model, "data": config.data, **{k: len(v) for k, v in made.items()}}


def _originals(data: Dataset, config: GenerateConfig) -> Tokens:
    """Images to complete, spread evenly over the split."""
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
