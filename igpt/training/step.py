"""One worker's network and optimizer: one step, one validation pass, the size of a micro batch.

The loss of a step is the sum over the images of the global batch divided by their number, however
they are spread over workers and micro batches; so workers may hold unequal rows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from igpt.errors import IgptError
from igpt.model.transformer import ImageGPT
from igpt.training import parallel
from igpt.training.config import TOKENS_ON_CPU, TrainingConfig
from igpt.training.optimizer import AdamW


class LossSum(nn.Module):
    """The sum of the images' losses, as a module that can be compiled and run in parallel."""

    def __init__(self, model: ImageGPT, objective: str) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, tokens: Tensor) -> Tensor:
        loss: Tensor = self.model.loss(tokens, objective=self.objective, reduction="sum")
        return loss


class Worker:
    """The network and optimizer of one rank. All ranks hold the same weights at all times."""

    def __init__(
        self, model: ImageGPT, config: TrainingConfig, *, world_size: int, device: torch.device
    ) -> None:
        self.model = model.to(device).train()
        self.device = device
        self.world_size = world_size
        self.global_batch = config.batch.global_
        self.clip = config.optimizer.clip
        self.bfloat16 = config.precision == "bfloat16"
        self.compiled = config.compile if config.compile != "auto" else device.type == "cuda"
        self.micro_batch = 0  # until `prepare`
        settings = config.optimizer
        kind = torch.optim.AdamW if self.compiled else AdamW
        self.optimizer = kind(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        # From the start, so that it can be restored, sent to other ranks, and counts as memory.
        for parameter in self.model.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        loss_sum: nn.Module = LossSum(self.model, config.objective)
        if self.compiled:
            loss_sum.compile(dynamic=False)
        self._loss_sum = loss_sum
        self._network = parallel.parallelize(loss_sum, device, world_size)

    def state(self) -> list[Tensor]:
        """Every tensor that all ranks must agree on before the first step."""
        moments = [
            value
            for parameter in self.model.parameters()
            for value in self.optimizer.state[parameter].values()
        ]
        return [parameter.data for parameter in self.model.parameters()] + moments

    def prepare(self, micro_batch: int) -> None:
        """Sets the micro batch and runs one pass, which changes no weight. Every rank must call it.

        It compiles, and it lets the gradients be laid out as they are in all later steps, so that
        a resumed run adds in the same order as one that was never interrupted.
        """
        self.micro_batch = micro_batch
        rows = min(micro_batch, self.global_batch // self.world_size)
        tokens = torch.zeros((rows, self.model.config.positions), dtype=torch.int64)
        self._backward(tokens, last=True)
        self.optimizer.zero_grad()

    def step(self, tokens: NDArray[np.uint16], learning_rate: float) -> Tensor:
        """One update from this rank's rows; returns the sum of their losses, float64, on device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        parts = torch.split(self._load(tokens), self.micro_batch)
        for number, part in enumerate(parts):
            total += self._backward(part, last=number == len(parts) - 1)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    @torch.no_grad()
    def loss_sum(self, tokens: NDArray[np.uint16]) -> Tensor:
        """The sum of the losses of these images, float64, on device; nothing is learnt."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in torch.split(self._load(tokens), self.micro_batch):
            with self._precision():
                total += self._loss_sum(part)
        return total

    def _backward(self, part: Tensor, *, last: bool) -> Tensor:
        part = part.to(self.device)
        with nullcontext() if last else parallel.accumulating(self._network):
            with self._precision():
                loss: Tensor = self._network(part)
            # Averaged over the workers, this is the sum over all images divided by their number.
            (loss * (self.world_size / self.global_batch)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _load(self, tokens: NDArray[np.uint16]) -> Tensor:
        """Int64 on the device; 2 bytes a token travel there, while the device still computes."""
        batch = torch.from_numpy(tokens)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return batch.long()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def largest_micro_batch(self, rows: int) -> int:
        """The most rows, halving from `rows`, that fit the memory of the device."""
        positions = self.model.config.positions
        if self.device.type != "cuda":
            return max(1, min(rows, TOKENS_ON_CPU // positions))
        while rows:
            try:
                self._backward(torch.zeros((rows, positions), dtype=torch.int64), last=False)
            except torch.OutOfMemoryError:
                rows //= 2
            else:
                return rows
            finally:
                self.optimizer.zero_grad()
                torch.cuda.empty_cache()
        raise IgptError(
            f"one image of {positions} tokens does not fit the memory of {self.device}",
            mend="Use a smaller network or a device with more memory.",
        )


@contextmanager
def deterministic(device: torch.device, precision: str) -> Iterator[None]:
    """Float32 on a GPU adds in a fixed order, so that the same run gives the same bits again.

    bfloat16 is for speed and keeps the faster kernels.
    """
    if device.type != "cuda" or precision != "float32":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
