"""The training loop: batches in, a trained network, metrics and checkpoints out.

Every `sync_every` steps, and wherever a validation or a checkpoint is due, the workers meet: they
exchange losses and flags (`igpt.training.agreement`), report, validate, save, and all stop after
the same step. What is in a checkpoint is in the metrics, which are flushed first.

Promise: with the same number of workers on the same machine type the float32 losses are
bit-identical whatever interruptions there were; with another number the batches are the same, and
the losses up to rounding. The recipe is that of Chen et al. (ICML 2020), appendix.
"""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from igpt.data.dataset import Dataset
from igpt.data.loader import Loader, row_digest
from igpt.errors import UserError
from igpt.model.transformer import ImageGPT
from igpt.storage import Store
from igpt.training import parallel
from igpt.training.agreement import Flags, Pending, agree
from igpt.training.checkpoint import (
    Checkpoint,
    CheckpointRef,
    capture,
    list_committed,
    load_checkpoint,
    restore,
)
from igpt.training.config import TrainingConfig
from igpt.training.reporting import Reporter
from igpt.training.saving import Saver, raise_together
from igpt.training.schedule import learning_rate, warmup_steps
from igpt.training.sink import Sink
from igpt.training.step import Worker, deterministic
from igpt.training.throughput import peak_flops
from igpt.training.writer import CheckpointWriter

Status = Literal["finished", "stopped", "superseded"]


@dataclass(frozen=True)
class Outcome:
    """How training ended. The same on every rank."""

    status: Status
    step: int  # finished optimizer steps
    loss: float | None  # of the last step, nats per token; None where none was taken
    validation_loss: float | None  # nats per token, of the last validation


def train(
    config: TrainingConfig,
    model: ImageGPT,
    data: Dataset,
    *,
    rank: int,
    world_size: int,
    device: torch.device | str,
    checkpoints: Store,
    attempt: int,
    sink: Sink,
    stop: Callable[[], bool],
    start: CheckpointRef | None = None,
    counting: Callable[[], Collection[CheckpointRef]] | None = None,
    needs: Callable[[str], bool] = lambda holder: True,
    time_left: Callable[[], float] = lambda: math.inf,
) -> Outcome:
    """Trains `model`, in place, until the schedule ends, `stop()` says so or a newer attempt rules.

    rank, world_size, device: of this process, which is in a process group where there are several
        (`igpt.training.parallel.process_group`).
    checkpoints: where they are written; `attempt` is part of their names.
    stop: whether this process was asked to stop; the answer of any rank stops all.
    start: the committed checkpoint to go on from; None starts from the weights of `model`.
    counting: lists the committed checkpoints that count, for pruning; None means that all do.
    needs: whether the one of this name still needs a checkpoint that it has pinned, for pruning.
    time_left: seconds until this process is killed, where it was asked to stop.

    Checkpoints wait for a store that is away, steps do not (`igpt.training.writer`).

    Raises UserError where model, data, configuration and checkpoint do not fit each other,
    IgptError where the loss is no longer a number, and Unreachable where the store stays away.
    """
    device = torch.device(device)
    parallel.check_group(rank, world_size)
    settings = config.checkpoints
    with (
        deterministic(device, config.precision),
        CheckpointWriter(
            checkpoints,
            attempt=attempt,
            keep=settings.keep,
            milestones=settings.milestones,
            superseded=sink.superseded,
            counting=counting or (lambda: list_committed(checkpoints)),
            needs=needs,
            flush=sink.flush,
            time_left=time_left,
        ) as writer,
    ):
        loop = _Loop(config, model, data, rank, world_size, device, writer, sink, stop)
        loop.begin(checkpoints, start)
        return loop.run()


class _Loop:
    """One call of `train`: what it was given, and how far it is."""

    def __init__(
        self,
        config: TrainingConfig,
        model: ImageGPT,
        data: Dataset,
        rank: int,
        world_size: int,
        device: torch.device,
        writer: CheckpointWriter,
        sink: Sink,
        stop: Callable[[], bool],
    ) -> None:
        _check_data(model, data)
        self.config = config
        self.model = model
        self.data = data
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.stop = stop
        self.steps = config.schedule.steps
        self.batch = config.batch.global_
        self.warmup = warmup_steps(
            config.schedule, samples=data.samples("train"), global_batch=self.batch
        )
        available = data.samples("validation") if "validation" in data.index.splits else 0
        wanted = config.validation.samples
        self.validation_samples = available if wanted == "all" else min(wanted, available)
        self.worker = Worker(model, config, world_size=world_size, device=device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.reporter = Reporter(
            sink,
            model.config,
            rank=rank,
            steps=self.steps,
            global_batch=self.batch,
            peak=peak_flops(name, config.precision),
        )
        self.step = 0
        self.loss: float | None = None
        self.validation_loss: float | None = None
        self.saver = Saver(writer, config.checkpoints, self.reporter, rank=rank, device=device)

    def begin(self, checkpoints: Store, start: CheckpointRef | None) -> None:
        """Restores the checkpoint, on rank 0 from the store, and readies every rank."""
        recorded = 0  # the micro batch of the run so far: where it fits, the sums stay the same
        if start is not None:
            self.step = start.step
            if self.rank == 0:
                checkpoint = load_checkpoint(checkpoints, start)
                _check_origin(checkpoint, self.model, self.data)
                restore(checkpoint, self.model, self.worker.optimizer)
                if checkpoint.config["world_size"] == self.world_size:
                    recorded = checkpoint.config["micro_batch"]
        parallel.broadcast(self.worker.state())
        recorded = int(parallel.gather([recorded], self.device)[0, 0])
        micro = self.config.batch.micro
        if micro == "auto":
            micro = self.worker.largest_micro_batch(recorded or -(-self.batch // self.world_size))
        self.worker.prepare(int(parallel.gather([micro], self.device).min()))
        self.reporter.event(
            "training" if start is None else "training-resumed",
            step=self.step,
            steps=self.steps,
            warmup=self.warmup,
            parameters=self.model.config.parameters(),
            tokens_per_step=self.batch * self.model.config.positions,
            micro_batch=self.worker.micro_batch,
            world_size=self.world_size,
            device=str(self.device),
            precision=self.config.precision,
            compiled=self.worker.compiled,
            validation_samples=self.validation_samples,
        )

    def run(self) -> Outcome:
        """Steps until the end."""
        if self.step >= self.steps:  # the checkpoint is the last one; only its result was missing
            self.validation_loss = self._validate()
            return self._outcome("finished")
        pending = Pending()
        with Loader(
            self.data,
            split="train",
            global_batch=self.batch,
            rank=self.rank,
            world_size=self.world_size,
            seed=self.config.seed,
            start_step=self.step,
        ) as loader:
            while True:
                asked = time.perf_counter()
                _, tokens, _ = next(loader)
                pending.waited += time.perf_counter() - asked
                rate = self._rate()
                loss = self.worker.step(tokens, rate)
                self.step += 1
                pending.add(self.step, loss, row_digest(loader.first_row, tokens), rate)
                if self.step % self.config.sync_every and not (self._validates() or self._saves()):
                    continue
                status = self._meet(pending)
                if status is not None:
                    return self._outcome("superseded" if self.saver.finish() else status)
                pending = Pending()

    def _rate(self) -> float:
        return learning_rate(
            self.step,
            highest=self.config.optimizer.learning_rate,
            warmup=self.warmup,
            steps=self.steps,
        )

    def _validates(self) -> bool:
        """Whether this step, by its number, ends with a validation."""
        return self.step == self.steps or self.step % self.config.validation.every == 0

    def _saves(self) -> bool:
        """Whether this step, by its number, ends with a checkpoint."""
        return self.step == self.steps or self.saver.wants(self.step)

    def _meet(self, pending: Pending) -> Status | None:
        """Agrees, reports, validates, saves; returns how training ends, if it ends here."""
        superseded, error = self.saver.landed()
        flags = Flags(self.stop(), self.saver.is_due(), superseded, error is not None)
        agreed = agree(pending, flags, global_batch=self.batch, device=self.device)
        raise_together(agreed.flags, error)
        self.reporter.trained(pending, agreed)
        self.loss = agreed.losses[-1]
        if agreed.flags.superseded:
            return "superseded"
        if self._validates():
            self.validation_loss = self._validate()
            if self.validation_loss is not None:
                self.reporter.validated(self.step, self.validation_loss)
        if self._saves() or agreed.flags.stop or agreed.flags.save:
            self.saver.save(self._capture)
        if self.step == self.steps:
            return "finished"
        return "stopped" if agreed.flags.stop else None

    def _capture(self) -> Checkpoint:
        described = {
            "model": self.model.config.model_dump(mode="json"),
            "palette": self.data.index.palette_digest,
            "data": self.data.digest,
            "training": self.config.model_dump(mode="json"),
            "world_size": self.world_size,
            "micro_batch": self.worker.micro_batch,
        }
        return capture(self.step, self.model, self.worker.optimizer, described)

    def _validate(self) -> float | None:
        """Mean nats per token of the first validation images; None where there are none."""
        if not self.validation_samples:
            return None
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        mine = parallel.share(self.validation_samples, self.rank, self.world_size)
        for begin in range(mine.start, mine.stop, self.batch):
            numbers = np.arange(begin, min(mine.stop, begin + self.batch))
            total += self.worker.loss_sum(self.data.tokens("validation", numbers))
        return float(parallel.gather(total[None], self.device).sum()) / self.validation_samples

    def _outcome(self, status: Status) -> Outcome:
        return Outcome(status, self.step, self.loss, self.validation_loss)


def _check_data(model: ImageGPT, data: Dataset) -> None:
    shape, index = model.config, data.index
    if (shape.resolution, shape.colors) != (index.resolution, index.colors):
        raise UserError(
            f"the data set holds {index.resolution}x{index.resolution} images in {index.colors} "
            f"colours, and the model takes {shape.resolution}x{shape.resolution} in "
            f"{shape.colors}",
            mend="Give the model the resolution and the colours of the data set.",
        )


def _check_origin(checkpoint: Checkpoint, model: ImageGPT, data: Dataset) -> None:
    for what, found, wanted in (
        ("model", checkpoint.config["model"], model.config.model_dump(mode="json")),
        ("data set", checkpoint.config["data"], data.digest),
    ):
        if found != wanted:
            raise UserError(
                f"the checkpoint of step {checkpoint.step} is of another {what}: {found}",
                expected=f"{wanted}",
                mend="A run goes on with the model and the data set that it began with.",
            )
