"""Prints the bytes that a real training step, or a pass without gradients, takes at its peak.

python memory_of_a_step.py KIND LAYERS WIDTH HEADS RESOLUTION COLORS IMAGES, KIND being a precision
(a step of two micro batches of IMAGES) or `features` (a pass over IMAGES).
"""

import sys
from pathlib import Path

import numpy as np
import torch

from igpt.model.config import ModelConfig
from igpt.model.transformer import ImageGPT
from igpt.training.config import TrainingConfig
from igpt.training.step import Worker


def peak() -> int:
    """Most bytes that this process has had in memory; not, as rusage does, its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def work(kind: str, shape: ModelConfig, images: int) -> list[object]:
    """Does it, and returns what has to stay in memory until the peak has been read."""
    model = ImageGPT(shape)
    if kind == "features":
        return [model, model.features(torch.zeros((images, shape.positions), dtype=torch.int64))]
    recipe = {"schedule": {"steps": 9}, "batch": {"global": 2 * images}, "precision": kind}
    config = TrainingConfig.model_validate(recipe)
    worker = Worker(model, config, world_size=1, device=torch.device("cpu"))
    worker.prepare(images)
    worker.step(np.zeros((2 * images, shape.positions), np.uint16), 1e-4)
    return [worker]


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, layers, width, heads, resolution, colors, images = sys.argv[1], *map(int, sys.argv[2:])
    work(kind, ModelConfig(layers=1, width=8, heads=1, resolution=2, colors=4), 1)  # loads all code
    before = peak()
    shape = ModelConfig(
        layers=layers, width=width, heads=heads, resolution=resolution, colors=colors
    )
    kept = work(kind, shape, images)
    print(peak() - before)
