"""Carries out `generate`: draws samples and completions, and writes them as tokens and pictures."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igpt.data import Dataset, Palette
from igpt.jobs.context import Context
from igpt.jobs.entries.common import dataset_of, pick_device
from igpt.jobs.generate import GenerateConfig
from igpt.jobs.references import open_reference
from igpt.model.generation import generate
from igpt.model.interchange import load_model
from igpt.model.transformer import ImageGPT

Tokens = NDArray[np.uint16]


def run(config: GenerateConfig, context: Context) -> dict[str, Any]:
    """Writes samples/*.npy (tokens) and samples/*.png (contact sheets) into the run."""
    if context.rank != 0:
        return {}
    data = dataset_of(context, config.data or "", context.run.spec().inputs["data"])
    device = pick_device(config.device, context.local_rank)
    model = load_model(open_reference(context.root, config.model).uri, device)
    palette = data.palette()
    work = config.samples + config.completions * config.completions_each
    drawn = 0

    def draw(n: int, prompt: Tokens | None, seed: int) -> Tokens:
        nonlocal drawn
        context.check_stop()
        tokens = generate(model, n, prompt=prompt, temperature=config.temperature, seed=seed)
        drawn += n
        context.sink.progress(done=drawn, total=work, unit="images")
        return tokens

    made: dict[str, Tokens] = {}
    if config.samples:
        batches = range(0, config.samples, config.batch)
        made["samples"] = np.concatenate(
            [
                draw(min(config.batch, config.samples - first), None, config.seed + first)
                for first in batches
            ]
        )
    if config.completions:
        made["originals"] = _originals(data, config)
        known = model.config.positions // 2
        each = [
            draw(
                config.completions, made["originals"][:, :known], config.seed + 1_000_003 * (k + 1)
            )
            for k in range(config.completions_each)
        ]
        made["completions"] = np.stack(each, axis=1)  # [completions, each, positions]
    for name, tokens in made.items():
        context.run.record.put(f"samples/{name}.npy", _npy(tokens))
        sheet = contact_sheet(tokens.reshape(-1, tokens.shape[-1]), palette, model)
        context.run.record.put(f"samples/{name}.png", sheet)
    return {"model": config.model, "data": config.data, **{k: len(v) for k, v in made.items()}}


def _originals(data: Dataset, config: GenerateConfig) -> Tokens:
    """Images to complete, spread evenly over the split."""
    count = data.samples(config.split)
    numbers = np.arange(config.completions) * count // config.completions
    return data.tokens(config.split, numbers)


def contact_sheet(tokens: Tokens, palette: Palette, model: ImageGPT, columns: int = 8) -> bytes:
    """Images side by side with a gap, enlarged without smoothing, as PNG."""
    size = model.config.resolution
    images = palette.decode(tokens, size=size)
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
