"""What a job needs, whatever it runs on: passes through the network, memory, bytes it leaves.

Pure arithmetic on a checked configuration, without torch; `igpt.clusters.planning` holds it against
a cluster. Parameters, FLOPs and the bytes of checkpoints and features are exact counts. Memory is
what torch keeps for the backward pass, counted from the network's operations, and is held against
real steps in the tests: right within a few per cent without torch.compile, some 15 % too high with
it. Shape letters: n positions, d width, V colours, L blocks, N parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from igpt.model.config import PRESETS, ModelConfig
from igpt.training.config import TrainingConfig

Precision = Literal["float32", "bfloat16"]

#: Bytes that the backward pass needs of each token and block, in units of d, without and with
#: torch.compile, which computes norms and activations again. Float32, in numbers a token: the
#: stream twice, normed twice and that once more before its gain, q, k, v, the attention's output,
#: and three times 4d of the MLP. In bfloat16 the stream and its norms stay float32.
_SAVED: Mapping[tuple[Precision, bool], int] = {
    ("float32", False): 88,
    ("float32", True): 64,
    ("bfloat16", False): 52,
    ("bfloat16", True): 36,
}
#: Bytes in units of d that the backward pass of one block works in, and a block without gradients.
_WORKING, _WORKING_FORWARD = 68, 60

#: The paper's learning rates (table 5). L at 48x48 is left out: its printed 0.01 is ten times that
#: at 32x32 and looks like a misprint.
_LEARNING_RATES: Mapping[tuple[str, int], float] = {
    ("igpt-s", 32): 0.003,
    ("igpt-m", 32): 0.003,
    ("igpt-l", 32): 0.001,
    ("igpt-xl", 64): 0.0003,
}


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one worker, by what they hold."""

    fixed: Mapping[str, int]  # whatever goes through the network
    per_image: int  # for each image that goes through it at once

    def of(self, images: int) -> int:
        """Bytes with so many images at once."""
        return sum(self.fixed.values()) + images * self.per_image

    def most_images(self, capacity: float) -> int:
        """The most images at once within `capacity` bytes; 0 where not even one fits."""
        return max(0, int((capacity - sum(self.fixed.values())) // self.per_image))


@dataclass(frozen=True)
class Training:
    """A pretraining."""

    model: ModelConfig
    recipe: TrainingConfig
    samples: int  # of the train split
    validation_images: int  # of one validation
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def images(self) -> int:
        """Images trained on, each as often as it comes."""
        return self.recipe.schedule.steps * self.recipe.batch.global_

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.images * self.model.positions

    @property
    def flops(self) -> int:
        """Floating point operations of the training, by `training_flops_per_token`."""
        return self.tokens * self.model.training_flops_per_token()

    @property
    def paced_tokens(self) -> float:
        """Tokens trained on that take as long as the run with its validations.

        A pass without gradients is a third of one with them.
        """
        validations = -(-self.recipe.schedule.steps // self.recipe.validation.every)
        return self.tokens + validations * self.validation_images * self.model.positions / 3

    def numbers(self) -> dict[str, Any]:
        """The counts, for programs."""
        return {
            "steps": self.recipe.schedule.steps,
            "epochs": self.images / self.samples,
            "images": self.images,
            "tokens": self.tokens,
            "parameters": self.model.parameters(),
            "flops": self.flops,
        }


@dataclass(frozen=True)
class Inference:
    """Passes through a network in float32 that learn nothing."""

    memory: Memory
    batch: int  # images at once, as configured
    flops: int | None = None  # of all passes; None where they do not decide the time


@dataclass(frozen=True)
class Need:
    """What one submission needs."""

    facts: dict[str, str] = field(default_factory=dict)  # beyond those of the preparation
    numbers: dict[str, Any] = field(default_factory=dict)  # the same, for programs
    training: Training | None = None
    inference: Inference | None = None
    output_bytes: int = 0  # left behind, besides checkpoints
    output: str | None = None  # where, as a settled reference; None is the store of runs


def training_memory(model: ModelConfig, precision: Precision, *, compiled: bool) -> Memory:
    """The memory of a training step: float32 weights, gradients and both moments of Adam.

    An upper bound: a single worker that takes all its rows at once holds no gradients while it
    holds all activations.
    """
    parameters, d, colors = model.parameters(), model.width, model.colors
    fixed = {"weights": 4 * parameters, "gradients": 4 * parameters, "Adam": 8 * parameters}
    if precision == "bfloat16":
        fixed["bfloat16 weights"] = 2 * (12 * model.layers * d * d + colors * d)
    # The loss keeps the logarithms of all probabilities, and its gradient twice as much.
    last = max(12 * colors, _WORKING * d)
    per_token = model.layers * _SAVED[precision, compiled] * d + last
    return Memory(fixed, model.positions * per_token)


def inference_memory(model: ModelConfig, *, cached: bool) -> Memory:
    """The memory of float32 passes without gradients; `cached` keeps keys and values of all blocks,
    as drawing images does."""
    cache = 8 * model.layers * model.width if cached else 0
    per_token = cache + max(4 * model.colors, _WORKING_FORWARD * model.width)
    return Memory({"weights": 4 * model.parameters()}, model.positions * per_token)


def forward_flops(model: ModelConfig, images: int) -> int:
    """Floating point operations of one pass without gradients: a third of training's."""
    return images * model.positions * model.training_flops_per_token() // 3


def checkpoint_bytes(model: ModelConfig) -> int:
    """Bytes of a checkpoint but for its small files: weights and two moments in float32, 12 N."""
    return 12 * model.parameters()


def checkpoints_kept(recipe: TrainingConfig) -> tuple[int, int]:
    """How many checkpoints a run keeps to its end: the newest, and milestones before the end."""
    settings, steps = recipe.checkpoints, recipe.schedule.steps
    return settings.keep, sum(milestone < steps for milestone in set(settings.milestones))


def paper_learning_rate(model: ModelConfig) -> tuple[str, float] | None:
    """The preset that this shape is, and the paper's rate for it; None where there is none."""
    for name, shape in PRESETS.items():
        if shape == (model.layers, model.width, model.heads):
            rate = _LEARNING_RATES.get((name, model.resolution))
            return None if rate is None else (name, rate)
    return None


def readable_bytes(count: float) -> str:
    """`512 kB`, `1.5 MB`, `16.3 GB`, `2.1 TB`, in powers of 1,000."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def counted(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
