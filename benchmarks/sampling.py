"""Drawing images with cached keys and values: against no cache, and against `transformers`.

One small network, 16x16 images in 512 colours, float32, its head drawn at random because an
untrained one is zero and would give every colour the same chance. Peers: a naive sampler that runs
the network over all tokens so far for each new one, which is half of what OpenAI's released sampler
does; and `transformers`' `generate` with its default cache, from the exported folder, with top-k
and top-p off. Taking the likeliest token, all three must give the same images; the time is that of
drawing at temperature 1, as in the paper.

Predicted: 8 times as fast as without a cache, 1.8 times as fast as `transformers`.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import igpt
from benchmarks.harness import Figure, compare, timed
from benchmarks.peers import huggingface
from igpt.model.transformer import ImageGPT


def figures(quick: bool, folder: Path) -> list[Figure]:
    """One batch of images."""
    side, layers, count = (4, 1, 2) if quick else (16, 4, 16)
    config = igpt.ModelConfig(layers=layers, width=128, heads=4, resolution=side)
    model = ImageGPT(config).eval()
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    palette = igpt.Palette(np.random.default_rng(0).uniform(-1, 1, (512, 3)).astype(np.float32))
    theirs = huggingface(model, palette, folder / "exported").eval()

    start = torch.full((count, 1), config.colors)  # their row for sos

    def transformers(sample: bool) -> NDArray[np.int64]:
        settings = {"do_sample": True, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
        drawn = theirs.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=config.positions,
            pad_token_id=config.colors,
            **settings,
        )
        images: NDArray[np.int64] = drawn[:, 1:].numpy()
        return images

    likeliest = igpt.generate(model, count, temperature=0)
    assert np.array_equal(likeliest, _without_cache(model, count, sample=False))
    assert np.array_equal(likeliest, transformers(sample=False))
    assert len(np.unique(likeliest)) > 1
    return compare(
        f"draw {count} images of {side}x{side}, {layers} blocks of 128",
        timed(lambda: igpt.generate(model, count)),
        {
            "no cache": timed(lambda: _without_cache(model, count, sample=True)),
            "transformers": timed(lambda: transformers(sample=True)),
        },
        rounds=1 if quick else 3,
        amount=count * config.positions,
        unit="tokens",
        warm_up=False,  # each has run above
    )


@torch.no_grad()
def _without_cache(model: ImageGPT, count: int, *, sample: bool) -> NDArray[np.int64]:
    tokens = torch.empty((count, 0), dtype=torch.int64)
    for _ in range(model.config.positions):
        logits, _ = model.prefill(tokens)  # over all tokens so far; its cache is dropped
        if sample:
            drawn = torch.multinomial(torch.softmax(logits, dim=-1), 1)
        else:
            drawn = logits.argmax(dim=-1, keepdim=True)
        tokens = torch.cat([tokens, drawn], dim=1)
    drawn_tokens: NDArray[np.int64] = tokens.numpy()
    return drawn_tokens
