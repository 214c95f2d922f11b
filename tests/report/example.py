"""A whole report of made-up content, as real in shape and size as a study on CIFAR-10."""

import math
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from igpt.report import (
    Attempt,
    Completion,
    Headline,
    ImageGrid,
    ProbeRow,
    ProbeSelection,
    ProbeTable,
    Protocol,
    Report,
    TrainingCurve,
)
from igpt.report.content import Budget, Subject

LAYERS = 25  # layer 24 is ln_f
L2S = tuple(10.0**power for power in range(-6, 3))
ON_VALIDATION = (
    "Layer and L2 were chosen on a held-out 10 % of the training images; the probe was then fitted "
    "on all of them and tested once."
)
AS_WITH_ALL = "Layer and L2 are those chosen with all labels: more than the number names."


def picture(seed: int, size: int = 32) -> NDArray[np.uint8]:
    """A landscape of smooth hills, uint8 [size, size, 3]."""
    random = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    sky, ground, sun = random.uniform(60, 255, (3, 3))
    horizon = 0.55 + 0.15 * np.sin(across * random.uniform(3, 8) + random.uniform(0, 6))
    image = sky + (255 - sky) * down[..., None] * 0.6
    image = np.where((down > horizon)[..., None], ground * (1.3 - down[..., None]), image)
    place = random.uniform(0.2, 0.8, 2) * (1, 0.5)
    round_ = (across - place[0]) ** 2 + (down - place[1]) ** 2 < 0.012
    image = np.where(round_[..., None], sun, image) + random.normal(0, 5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def accuracy(subject: Subject, layer: int | None, l2: float, budget: Budget) -> float:
    """A plausible accuracy: best in the middle of the network and at an L2 of 1e-3."""
    depth = 0.0 if layer is None else layer / (LAYERS - 1)
    peak = {
        "trained": 0.40 + 0.40 * math.exp(-(((depth - 0.6) / 0.33) ** 2)),
        "untrained": 0.46 - 0.10 * depth,
        "raw pixels": 0.40,
    }[subject]
    scarcity = 1.0 if budget == "all" else 0.55 + 0.1 * math.log10(budget / 10)
    return 0.1 + (peak - 0.1) * scarcity * math.exp(-((math.log10(l2 / 1e-3) / 5) ** 2))


def probes() -> ProbeTable:
    random = np.random.default_rng(0)
    rows, selections = [], []
    budgets: list[Budget] = [40, 250, 4000, "all"]
    for budget in budgets:
        seeds = 1 if budget == "all" else 5
        for subject in ("trained", "untrained", "raw pixels"):
            layers = [None] if subject == "raw pixels" else list(range(LAYERS))
            for layer in layers if budget == "all" else layers[14:15] or [None]:
                for l2 in L2S:
                    for seed in range(seeds):
                        value = accuracy(subject, layer, l2, budget) + random.normal(0, 0.004)
                        rows.append(ProbeRow(subject, layer, l2, budget, seed, value, value - 0.01))
            layer = {"trained": 14, "untrained": 2, "raw pixels": None}[subject]
            spread = None if budget == "all" else 0.24 / math.sqrt(budget)
            selections.append(
                ProbeSelection(
                    subject,
                    budget,
                    layer,
                    1e-3,
                    accuracy(subject, layer, 1e-3, budget) - 0.01,
                    spread,
                    seeds,
                    ON_VALIDATION if budget == "all" else AS_WITH_ALL,
                )
            )
    return ProbeTable(tuple(rows), tuple(selections), classes=10)


def training() -> TrainingCurve:
    random = np.random.default_rng(1)
    steps = np.arange(10, 20_001, 10)
    losses = 2.05 + 4.19 * np.exp(-((steps / 250.0) ** 0.5)) + random.normal(0, 0.02, len(steps))
    marks = range(1000, 20_001, 1000)
    return TrainingCurve(
        tuple((int(step), float(loss)) for step, loss in zip(steps, losses, strict=True)),
        tuple((mark, 2.06 + 4.19 * math.exp(-math.sqrt(mark / 250))) for mark in marks),
        colors=512,
        palette_entropy=5.531,
    )


def completion(seed: int) -> Completion:
    hidden = np.zeros((32, 32), dtype=bool)
    hidden[16:] = True
    original = picture(seed)
    made = np.stack([np.where(hidden[..., None], picture(seed + k), original) for k in range(1, 6)])
    return Completion(original, hidden, made.astype(np.uint8), f"test image {seed}")


def report() -> Report:
    pictures = np.stack([picture(seed) for seed in range(40)])
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse")
    return Report(
        title="iGPT-S on CIFAR-10",
        made=datetime(2026, 11, 24, 10, 30, tzinfo=UTC),
        runs=("pretrain-5f2c91ab", "probe-0be7d3c4"),
        summary=(
            "A transformer of 24 layers, pretrained on 45,000 images of CIFAR-10 at 32×32 to "
            "predict one of 512 colours after the other, and what a linear classifier reads from "
            "it."
        ),
        headlines=(
            Headline("Linear probe, test", "78.9 %", "layer 14, all labels"),
            Headline("The same, untrained", "44.5 %", "layer 2, all labels"),
            Headline("Raw pixels", "38.9 %", "all labels"),
            Headline("Validation loss", "2.0606", "nats per token, step 20,000"),
        ),
        probes=probes(),
        training=training(),
        samples=ImageGrid(pictures[:24], caption="Drawn at temperature 1, none left out."),
        completions=tuple(completion(seed) for seed in (100, 200, 300, 400)),
        examples=ImageGrid(
            pictures[24:],
            classes * 2,
            "Training images after preprocessing, in the 512 colours of the palette.",
        ),
        protocol=(
            Protocol(
                "Linear probe",
                "Features are the mean over all positions of each block's first norm.\n\n"
                + ON_VALIDATION,
            ),
            Protocol("Loss", "Mean cross-entropy over all 1,024 positions, in nats per token."),
        ),
        provenance={
            "command": "igpt-jobs submit pretrain --cluster slurm.yaml model.preset=igpt-s",
            "commit": "3f9d1c07",
            "seed": 0,
            "data": {"name": "cifar10-32", "samples": {"train": 45_000, "validation": 5_000}},
            "packages": {"torch": "2.13.0", "numpy": "2.4.0", "ray": "2.60.0"},
        },
        attempts=(
            Attempt(
                1,
                "slurm",
                "preempted",
                datetime(2026, 11, 22, 8, 0, tzinfo=UTC),
                datetime(2026, 11, 22, 13, 5, tzinfo=UTC),
                1,
                11_264,
                "USR2 received, checkpoint committed",
            ),
            Attempt(
                2,
                "ray",
                "finished",
                datetime(2026, 11, 22, 13, 9, tzinfo=UTC),
                datetime(2026, 11, 22, 17, 2, tzinfo=UTC),
                11_265,
                20_000,
            ),
        ),
    )
