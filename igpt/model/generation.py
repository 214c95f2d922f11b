"""Drawing images from a network, one token at a time, with cached keys and values.

Trap of the released code: its own cache feeds `sos` at every step. Here position i is fed token
i-1, and `sos` only at position 0; a test compares with the sampler that has no cache.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.errors import UserError
from igpt.model.transformer import ImageGPT


@torch.no_grad()
def generate(
    model: ImageGPT,
    n: int,
    *,
    prompt: NDArray[np.uint16] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> NDArray[np.uint16]:
    """Draws `n` images from the model: uint16 [n, positions].

    prompt: uint16 [n, k] or [k], the first k tokens in raster order (half an image, say), kept as
        they are; None starts from nothing.
    temperature: 1 is the model's own distribution, the paper's; 0 takes the likeliest token.
    seed: the draw is a function of it (same machine and batch size).

    Raises UserError for a prompt of another shape or palette and for a temperature below 0.
    """
    positions = model.config.positions
    if not temperature >= 0:
        raise UserError(
            f"temperature is {temperature}",
            expected="0 or more; 1 is the model's own distribution",
        )
    known = _known(prompt, n, positions, model.config.colors)
    device = model.sos.device
    generator = torch.Generator(device=device).manual_seed(seed)
    tokens = torch.empty((n, positions), dtype=torch.int64, device=device)
    start = known.shape[1]
    tokens[:, :start] = torch.from_numpy(known).to(device)
    if start < positions:
        logits, cache = model.prefill(tokens[:, :start])
        tokens[:, start] = _draw(logits, temperature, generator)
        for position in range(start + 1, positions):
            logits = model.decode(tokens[:, position - 1], cache)
            tokens[:, position] = _draw(logits, temperature, generator)
    drawn: NDArray[np.uint16] = tokens.cpu().numpy().astype(np.uint16)
    return drawn


def _known(
    prompt: NDArray[np.uint16] | None, n: int, positions: int, colors: int
) -> NDArray[np.int64]:
    """The prompt as int64 [n, k], checked."""
    if prompt is None:
        return np.zeros((n, 0), np.int64)
    known = np.asarray(prompt).astype(np.int64)
    if known.ndim == 1:
        known = np.tile(known, (n, 1))
    if known.ndim != 2 or known.shape[0] != n or known.shape[1] > positions:
        raise UserError(
            f"the prompt has shape {list(known.shape)}",
            expected=f"[{n}, k] or [k] with k at most {positions}",
        )
    if known.size and not 0 <= known.min() <= known.max() < colors:
        raise UserError(
            f"the prompt holds tokens {known.min()} to {known.max()}",
            expected=f"0 to {colors - 1}, the colours of this model's palette",
            mend="Was it encoded with another palette?",
        )
    return known


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
