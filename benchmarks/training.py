"""Tokens a second in training: our loop against `transformers`' Image GPT in a plain torch loop.

The quickstart's network (4 blocks of 64, 8x8 images of 32 colours, batch 64), float32. Ours is
`igpt.training.train` on shards, with its loader, digests and metrics; the clock runs from the tenth
step to the last. The peer has the same weights by way of the exported folder, the same batches
ready in memory, fused AdamW of the same settings, and reads the loss every ten steps; its biases,
which the paper's network has not, are frozen, so that both compute the same. The losses of the
first ten steps must agree to 1e-4.

Predicted: 1.2 times as fast.
"""

import time
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import igpt
from benchmarks.harness import Figure, compare
from benchmarks.peers import huggingface
from igpt.data import ArraySource, Dataset, Loader, open_dataset, write_shards
from igpt.data.digits import digits
from igpt.model.transformer import ImageGPT
from igpt.storage import open_store
from igpt.training.config import TrainingConfig
from igpt.training.loop import train
from igpt.training.schedule import learning_rate

BATCH = 64
_SYNC = 10  # steps between two readings of the loss, for both; so many losses must be the same


class _Clock:
    """A sink that notes when metrics come and what the losses are."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def metrics(self, lines: list[dict[str, object]]) -> None:
        self.times.append(time.perf_counter())
        self.losses += [float(str(line["loss"])) for line in lines]

    def flush(self) -> None: ...

    def event(self, kind: str, **fields: object) -> None: ...

    def progress(self, **fields: object) -> None: ...

    def superseded(self) -> bool:
        return False


def figures(quick: bool, folder: Path) -> list[Figure]:
    """Some steps of both."""
    data = _data(folder / "data", 256 if quick else 4096)
    sync = 4 if quick else _SYNC
    steps = 2 * sync if quick else 5 * sync
    config = TrainingConfig.model_validate(
        {
            "schedule": {"steps": steps, "warmup": steps // 4},
            "batch": {"global": BATCH},
            "checkpoints": {"every_minutes": None},
            "sync_every": sync,
        }
    )
    fresh = (folder / str(number) for number in count())
    losses: dict[str, list[float]] = {}

    def ours() -> float:
        clock = _Clock()
        train(
            config,
            _model(),
            data,
            rank=0,
            world_size=1,
            device="cpu",
            checkpoints=open_store(str(next(fresh))),
            attempt=1,
            sink=clock,
            stop=lambda: False,
        )
        losses["ours"] = clock.losses
        return clock.times[-1] - clock.times[0]

    with Loader(data, split="train", global_batch=BATCH, seed=config.seed) as loader:
        batches = [torch.from_numpy(tokens).long() for _, tokens, _ in islice(loader, steps)]

    def theirs() -> float:
        seconds, losses["theirs"] = _plain_loop(config, data, batches, next(fresh))
        return seconds

    ours(), theirs()
    assert np.allclose(losses["ours"][:sync], losses["theirs"][:sync], rtol=0, atol=1e-4)
    assert losses["ours"][sync] < losses["ours"][0]
    return compare(
        f"{steps - sync} steps of {BATCH} images of 8x8",
        ours,
        {"transformers": theirs},
        rounds=1 if quick else 5,
        amount=(steps - sync) * BATCH * data.index.positions,
        unit="tokens",
        warm_up=False,  # each has run above
    )


def _plain_loop(
    config: TrainingConfig, data: Dataset, batches: list[Tensor], folder: Path
) -> tuple[float, list[float]]:
    """Seconds from the first reading of the loss to the last, and the loss of each step."""
    model = huggingface(_model(), data.palette(), folder).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith(".bias"))
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    sos = torch.full((BATCH, 1), data.index.colors)
    losses: list[float] = []
    pending: list[Tensor] = []
    times: list[float] = []
    for step, tokens in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                highest=settings.learning_rate,
                warmup=config.schedule.warmup or 0,
                steps=config.schedule.steps,
            )
        logits = model(torch.cat([sos, tokens[:, :-1]], dim=1), use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        pending.append(loss.detach())
        if (step + 1) % config.sync_every == 0:
            losses += torch.stack(pending).tolist()
            pending.clear()
            times.append(time.perf_counter())
    return times[-1] - times[0], losses


def _model() -> ImageGPT:
    return ImageGPT(igpt.ModelConfig(layers=4, width=64, heads=4, resolution=8, colors=32))


def _data(folder: Path, images: int) -> Dataset:
    """The first training digits as shards."""
    pictures, labels, _ = digits()
    pictures, labels = pictures[:images], labels[:images]
    write_shards(
        ArraySource(pictures, labels),
        folder,
        resolution=8,
        palette=igpt.Palette.fit(pictures.reshape(-1, 3), 32),
        validation_fraction=0.0,
        augment=False,
    )
    return open_dataset(folder)
