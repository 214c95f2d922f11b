"""Several workers that train as one: process group, gradients, and vectors that all agree on.

One worker needs no process group, and everything here works without. Loops ask for three things:
`process_group` to join, `parallelize` to share gradients, `gather` to agree. Waiting for a worker
that never comes ends after `timeout`, never hangs.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from igpt.errors import IgptError


@contextmanager
def process_group(
    rank: int,
    world_size: int,
    device: torch.device,
    *,
    rendezvous: str = "env://",
    timeout: timedelta = timedelta(minutes=30),
) -> Iterator[None]:
    """Joins the workers for as long as the context lasts: NCCL between GPUs, else gloo.

    rendezvous: `env://` (MASTER_ADDR, MASTER_PORT), `tcp://host:port` or `file:///path`.
    timeout: of joining and of each exchange. It has to outlast the upload of a checkpoint.

    A group that exists already, such as Ray's, is used and left alone; one worker needs none.

    After an exception a group of NCCL is left to the end of the process, which must not take the
    interpreter apart (`os._exit`): to end the group waits for exchanges that the peers, who do not
    know yet, are still in. Nobody would hear of the exception before `timeout`.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size == 1 or dist.is_initialized():
        check_group(rank, world_size)
        yield
        return
    try:
        dist.init_process_group(
            backend,
            init_method=rendezvous,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except RuntimeError as error:  # torch's own errors of this kind are among them
        raise IgptError(
            f"rank {rank} of {world_size} waited {timeout.total_seconds():g} s for the others at "
            f"{rendezvous}: {error}",
            expected=f"{world_size} workers that reach each other",
        ) from None
    try:
        yield
    except BaseException as error:
        if backend != "nccl":
            _release_frames(error)
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _release_frames(error: BaseException) -> None:
    """Drops what the frames of an error still hold: the gradients' reducer, before its group.

    The reducer, destroyed last, destroys the group with the interpreter's lock in hand and waits
    for gloo's thread, which may be waiting for that lock to let go of a tensor: for ever. (Seen
    with torch 2.13, in about one of twenty workers whose peer was killed.)
    """
    seen: set[int] = set()
    while error.__traceback__ is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__ or error


def check_group(rank: int, world_size: int) -> None:
    """Raises IgptError where the process group is not the one that rank and world size speak of."""
    there = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if there != (rank, world_size):
        raise IgptError(
            f"this process is rank {there[0]} of {there[1]}, and was told that it is rank {rank} "
            f"of {world_size}",
            expected="to be called inside process_group(rank, world_size, device)",
        )


def parallelize(module: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """The module, its gradients averaged over the workers after each backward pass."""
    if world_size == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def accumulating(module: nn.Module) -> AbstractContextManager[None]:
    """Within it, gradients add up on this worker alone: for all micro batches but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def gather(values: Sequence[float] | Tensor, device: torch.device) -> NDArray[np.float64]:
    """Every worker's float64 vector [m]: float64 [W, m], in the order of ranks."""
    mine = torch.as_tensor(values, dtype=torch.float64, device=device)
    return _gather(mine).cpu().numpy()


def gather_words(values: Sequence[int], device: torch.device) -> NDArray[np.uint64]:
    """Every worker's vector of 64-bit words [m]: uint64 [W, m], in the order of ranks."""
    words = np.array(values, np.uint64).view(np.int64)
    return _gather(torch.from_numpy(words).to(device)).cpu().numpy().view(np.uint64)


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Fills the tensors of every worker with those of rank 0."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def share(rows: int, rank: int, world_size: int) -> range:
    """The rows of a batch that a worker takes: floor(r rows / W) to floor((r+1) rows / W)."""
    return range(rank * rows // world_size, (rank + 1) * rows // world_size)


def _gather(mine: Tensor) -> Tensor:
    # Gathered and then added in the order of ranks, rather than reduced: the order in which a ring
    # adds depends on the place in the vector, and sums are to be the same to the last bit.
    if not dist.is_initialized():
        return mine[None]
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return torch.stack(everyone)
