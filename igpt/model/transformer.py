"""The Image GPT network, exactly as in OpenAI's release (openai/image-gpt, `src/model.py`).

Root-mean-square norms with a gain and no bias, no biases anywhere, `x * sigmoid(1.702 x)`, a start
vector `sos` that is not a vocabulary row, and an untied output head that starts at zero, so that
the first loss is exactly ln(colors). The input is shifted, not the target: position i predicts
token i, every pixel is predicted, and the last one never enters the network.

The file knows nothing of parallelism, precision or training. Shape letters: B images, n positions,
d width, V colours, L blocks, H heads.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.model.config import ModelConfig


@dataclass
class Cache:
    """Keys and values of the positions seen so far, with room for all n of them."""

    keys: list[Tensor]  # one a block, [B, H, n, d/H]
    values: list[Tensor]
    seen: int


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + 1e-5) * weight`: no mean subtracted, no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, eps=1e-5)


class Attention(nn.Module):
    """Multi-head self-attention, scale 1/sqrt(d/H), no bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, causal: bool, past: tuple[Tensor, Tensor] | None = None, seen: int = 0
    ) -> Tensor:
        """Mixes x [B, n, d]; with `past`, x continues the `seen` positions that stand there."""
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )  # each [B, H, length, d/H]
        if past is not None:
            assert seen == 0 or length == 1  # a longer continuation would need a shifted mask
            end = seen + length
            past[0][:, :, seen:end], past[1][:, :, seen:end] = k, v
            k, v = past[0][:, :, :end], past[1][:, :, :end]
        # One new position may look at all that went before; only a whole sequence needs the mask.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal and length > 1)
        output: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return output


class Block(nn.Module):
    """Pre-norm block: the residual is added to the stream, never to its normed copy."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.width)
        self.attention = Attention(config)
        self.ln_2 = RMSNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, causal: bool, past: tuple[Tensor, Tensor] | None = None, seen: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The stream after the block, and the normed input of its attention."""
        normed = self.ln_1(x)
        x = x + self.attention(normed, causal, past, seen)
        x = x + self.down(_quick_gelu(self.up(self.ln_2(x))))
        return x, normed


class ImageGPT(nn.Module):
    """The network: tokens of a palette in, logits over the palette out.

    `seed` draws the initial weights from a generator of their own, so that a model is the same
    whatever ran before it.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.colors, config.width)
        self.wpe = nn.Embedding(config.positions, config.width)
        self.sos = nn.Parameter(torch.empty(config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.colors, bias=False)
        self._initialise(seed)

    def forward(
        self, tokens: Tensor, *, objective: str = "autoregressive", mask: Tensor | None = None
    ) -> Tensor:
        """Logits float [B, n, V] for tokens int [B, n]; position i predicts token i."""
        x = self._embed(tokens, objective, mask)
        for block in self.blocks:
            x, _ = block(x, objective == "autoregressive")
        logits: Tensor = self.head(self.ln_f(x))
        return logits

    def loss(
        self,
        tokens: Tensor,
        *,
        objective: str = "autoregressive",
        mask: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy in nats per token of tokens int [B, n]; float32, a scalar.

        `objective="bert"` takes `mask` bool [B, n], True where the token is hidden, and counts the
        hidden positions only, each image as their mean. `reduction="sum"` adds the images' means
        instead of averaging them, for batches that are spread over workers unevenly.
        """
        logits = self(tokens, objective=objective, mask=mask).float()
        each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten().long(), reduction="none")
        each = each.view(tokens.shape)  # [B, n]
        if objective == "bert":
            assert mask is not None  # _embed has checked it
            images = (each * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        else:
            images = each.mean(dim=1)
        return images.mean() if reduction == "mean" else images.sum()

    @torch.no_grad()
    def features(self, tokens: Tensor) -> Tensor:
        """Float [L+1, B, d]: the mean over all positions of each block's ln_1 output; last, ln_f.

        Section 2.4 of the paper: f^l = mean_i layer_norm(h^l)_i for 0 <= l <= L.
        """
        x = self._embed(tokens, "autoregressive", None)
        pooled = []
        for block in self.blocks:
            x, normed = block(x, True)
            pooled.append(normed.float().mean(dim=1))
        pooled.append(self.ln_f(x).float().mean(dim=1))
        return torch.stack(pooled)

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> tuple[Tensor, Cache]:
        """Logits float [B, V] of the token after `tokens` int [B, k], k < n, and the cache."""
        # The shifted input of k known tokens is sos and all of them: k + 1 positions.
        batch, config = tokens.shape[0], self.config
        x = torch.cat([self.sos.expand(batch, 1, -1), self.wte(tokens.long())], dim=1)
        shape = (batch, config.heads, config.positions, config.width // config.heads)
        cache = Cache(
            keys=[x.new_empty(shape) for _ in self.blocks],
            values=[x.new_empty(shape) for _ in self.blocks],
            seen=0,
        )
        return self._continue(x, cache), cache

    @torch.no_grad()
    def decode(self, token: Tensor, cache: Cache) -> Tensor:
        """Logits float [B, V] of the next token, given the last one, int [B]; the cache grows."""
        return self._continue(self.wte(token.long()).unsqueeze(1), cache)

    def _continue(self, x: Tensor, cache: Cache) -> Tensor:
        length = x.shape[1]
        x = x + self.wpe.weight[cache.seen : cache.seen + length]
        for block, *past in zip(self.blocks, cache.keys, cache.values, strict=True):
            x, _ = block(x, True, tuple(past), cache.seen)
        cache.seen += length
        logits: Tensor = self.head(self.ln_f(x[:, -1]))
        return logits

    def _embed(self, tokens: Tensor, objective: str, mask: Tensor | None) -> Tensor:
        if tokens.ndim != 2 or tokens.shape[1] != self.config.positions:
            raise ValueError(
                f"tokens have shape {list(tokens.shape)}; this model takes [images, "
                f"{self.config.positions}] ({self.config.resolution}x{self.config.resolution})"
            )
        h = self.wte(tokens.long())  # [B, n, d]
        if objective == "autoregressive":
            h = torch.cat([self.sos.expand(h.shape[0], 1, -1), h[:, :-1]], dim=1)
        elif objective == "bert":
            if mask is None or mask.shape != tokens.shape:
                raise ValueError("objective 'bert' needs mask, bool, of the shape of tokens")
            h = h * (~mask).unsqueeze(-1)  # before the positions: a hidden slot is its place alone
        else:
            raise ValueError(f"objective {objective!r} is neither 'autoregressive' nor 'bert'")
        embedded: Tensor = h + self.wpe.weight
        return embedded

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """OpenAI's start: of the residual branches only attention is scaled by depth; head 0."""
        if self.sos.is_meta:
            return
        d, layers = self.config.width, self.config.layers
        deviations = {
            "wte.weight": 0.02,
            "wpe.weight": 0.01,
            "sos": 0.02,
            "attention.qkv.weight": 1 / math.sqrt(d),
            "attention.out.weight": 1 / math.sqrt(d * layers),
            "up.weight": 0.02,
            "down.weight": 0.02,
            "head.weight": 0.0,
        }
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            kind = name.split(".", 2)[2] if name.startswith("blocks.") else name
            if kind in deviations:  # the gains are one already
                nn.init.normal_(parameter, std=deviations[kind], generator=generator)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
