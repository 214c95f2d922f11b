"""What the workers tell each other every few steps, and what follows from it on all of them.

Losses wait on the device until then, so that no step waits for a number. The exchange gives every
rank the same answer: the losses, whether to stop, whether to save.
"""

import time
from dataclasses import astuple, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt.training import parallel


@dataclass
class Pending:
    """The steps of this rank since the last exchange."""

    steps: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)  # sums over this rank's rows, on the device
    digests: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    waited: float = 0.0  # seconds, for data
    began: float = field(default_factory=time.perf_counter)

    def add(self, step: int, loss: Tensor, digest: int, rate: float) -> None:
        """One more step."""
        self.steps.append(step)
        self.losses.append(loss)
        self.digests.append(digest)
        self.rates.append(rate)


@dataclass(frozen=True)
class Flags:
    """What one rank wants the others to know."""

    stop: bool = False  # it was asked to stop
    save: bool = False  # the time for a checkpoint has come
    superseded: bool = False  # a newer attempt has claimed the run
    failed: bool = False  # it cannot go on; it raises what happened
    writing: bool = False  # its last checkpoint is not written yet


@dataclass(frozen=True)
class Agreement:
    """The pending steps of all workers, and the flags that any of them has set."""

    flags: Flags
    losses: list[float]  # mean nats per token over the global batch, one a step
    digests: list[int]  # of the global batches
    waits: list[float]  # seconds that each worker waited for data
    seconds: float  # that the steps took


def agree(pending: Pending, flags: Flags, *, global_batch: int, device: torch.device) -> Agreement:
    """Exchanges losses, digests, waits and flags. Every rank must call it after the same step."""
    tail = [*_numbers(flags), pending.waited]
    mine = torch.tensor(tail, dtype=torch.float64, device=device)
    everyone = parallel.gather(torch.cat([torch.stack(pending.losses), mine]), device)
    words = parallel.gather_words(pending.digests, device)
    count = len(pending.steps)
    return Agreement(
        flags=_any(everyone[:, count:-1]),
        losses=(everyone[:, :count].sum(axis=0) / global_batch).tolist(),
        digests=np.add.reduce(words, axis=0).tolist(),  # modulo 2^64
        waits=everyone[:, -1].tolist(),
        seconds=time.perf_counter() - pending.began,
    )


def agree_on(flags: Flags, device: torch.device) -> Flags:
    """The flags that any rank has set. Every rank must call it."""
    return _any(parallel.gather(_numbers(flags), device))


def _numbers(flags: Flags) -> list[float]:
    return [float(flag) for flag in astuple(flags)]


def _any(everyone: NDArray[np.float64]) -> Flags:
    return Flags(*(bool(flag) for flag in everyone.max(axis=0)))
