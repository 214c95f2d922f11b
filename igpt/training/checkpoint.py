"""Checkpoints: weights and optimizer as safetensors, sealed last, read back, pruned.

A checkpoint is the folder `step-<9 digits>/attempt-<n>/` of a store with `model.safetensors`,
`optimizer.safetensors`, `config.json`, `manifest.json` and, last, `COMMITTED`
(`igpt.model.sealed`). What is not committed is not there. Restoring is exact to the last bit, and
nothing is unpickled.

Which committed checkpoints count is decided outside, by the lineage of attempts: loading is told
which one, and pruning asks a function.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from igpt.errors import DataCorrupt
from igpt.model.sealed import (
    PINS,
    SEAL,
    describe,
    is_pinned,
    read_manifest,
    seal,
    unseal,
    verified,
)
from igpt.model.tensors import save_tensors
from igpt.storage import Store
from igpt.storage.files import explained

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
_FILES = (WEIGHTS, OPTIMIZER, CONFIG)


@dataclass(frozen=True, order=True)
class CheckpointRef:
    """Which checkpoint: the finished steps it holds, and the attempt that wrote it."""

    step: int
    attempt: int

    @property
    def key(self) -> str:
        """Its folder, from the store of checkpoints."""
        return f"step-{self.step:09d}/attempt-{self.attempt}"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, in the memory of the host."""

    step: int
    weights: dict[str, Tensor]  # by the model's names
    optimizer: dict[str, Tensor]  # "<state>/<name of the weight>", float32
    config: dict[str, Any]  # JSON: the model's shape, the digests, the training config


@dataclass(frozen=True)
class Written:
    """What became of a checkpoint: `committed` is False where a newer attempt had taken over."""

    ref: CheckpointRef
    committed: bool
    seconds: float
    bytes: int


def capture(
    step: int, model: nn.Module, optimizer: Optimizer, config: Mapping[str, Any]
) -> Checkpoint:
    """A copy in host memory, so that training can go on while it is written."""
    moments = {
        f"{kind}/{name}": _copy(value)
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }
    weights = {name: _copy(value) for name, value in model.state_dict().items()}
    return Checkpoint(step, weights, moments, dict(config))


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
    """Puts the weights and the optimizer's state back, bit for bit.

    Raises DataCorrupt where the checkpoint lacks a tensor or holds others.
    """
    where = f"the checkpoint of step {checkpoint.step}"
    state: dict[int, dict[str, Tensor]] = {}
    rest = dict(checkpoint.optimizer)
    try:
        for number, (name, parameter) in enumerate(model.named_parameters()):
            state[number] = {
                kind: rest.pop(f"{kind}/{name}") for kind in optimizer.state[parameter]
            }
        model.load_state_dict(checkpoint.weights)
    except (KeyError, RuntimeError) as error:
        raise DataCorrupt(f"{where} does not fit the model: {error}") from None
    if rest:
        raise DataCorrupt(f"{where} holds {sorted(rest)[0]}, which the optimizer does not have")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def list_committed(store: Store) -> list[CheckpointRef]:
    """All committed checkpoints of a store, in the order of steps, then attempts."""
    return sorted(
        ref for ref, keys in _folders(store).items() if any(key.endswith(SEAL) for key in keys)
    )


def load_checkpoint(store: Store, ref: CheckpointRef) -> Checkpoint:
    """The checkpoint, every byte checked against its manifest.

    Raises UserError where it was never committed and DataCorrupt where it is damaged.
    """
    folder = store.sub(ref.key)
    manifest = read_manifest(folder)
    with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as scratch:
        paths = {name: verified(folder, manifest, name, Path(scratch)) for name in _FILES}
        try:
            with explained("read", paths[CONFIG].parent):
                weights, optimizer = load_file(paths[WEIGHTS]), load_file(paths[OPTIMIZER])
                config = json.loads(paths[CONFIG].read_text(encoding="utf-8"))
            return Checkpoint(
                step=manifest.step,
                # Copied: files may be mapped, and the scratch folder goes.
                weights={name: _copy(value) for name, value in weights.items()},
                optimizer={name: _copy(value) for name, value in optimizer.items()},
                config=config,
            )
        except (SafetensorError, ValueError) as error:
            raise DataCorrupt(f"{folder.uri} cannot be read: {error}") from None


def save_checkpoint(
    store: Store, checkpoint: Checkpoint, attempt: int, superseded: Callable[[], bool]
) -> Written:
    """Writes and commits a checkpoint, and reads it back.

    `superseded` is asked right before the commit, and where it says so, nothing is committed.
    Raises DataCorrupt, having taken the seal off again, where what is read back differs, and
    Unreachable where the store is away or full, or the disk of the temporary folder is full.
    """
    began = time.perf_counter()
    ref = CheckpointRef(checkpoint.step, attempt)
    folder = store.sub(ref.key)
    with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as scratch:
        paths = {name: Path(scratch) / name for name in _FILES}
        save_tensors(checkpoint.weights, paths[WEIGHTS])
        save_tensors(checkpoint.optimizer, paths[OPTIMIZER])
        text = json.dumps(checkpoint.config, indent=1)
        with explained("written", paths[CONFIG]):
            paths[CONFIG].write_text(text, encoding="utf-8")
        manifest = describe(checkpoint.step, paths)
        for name, path in paths.items():
            folder.upload(name, path)
            path.unlink()
        committed = not superseded()
        if committed:
            seal(folder, manifest)
            try:
                for entry in read_manifest(folder).files:
                    verified(folder, manifest, entry.name, Path(scratch))
                    (Path(scratch) / entry.name).unlink(missing_ok=True)
            except DataCorrupt:
                folder.delete([SEAL])
                raise
    seconds = time.perf_counter() - began
    return Written(ref, committed, seconds, sum(entry.bytes for entry in manifest.files))


def prune(
    store: Store,
    counting: Collection[CheckpointRef],
    *,
    attempt: int,
    keep: int,
    milestones: Collection[int],
    needs: Callable[[str], bool] = lambda holder: True,
) -> list[CheckpointRef]:
    """Drops what nobody will start from again, and returns it.

    Of those in `counting`, the committed ones on the lineage, the newest `keep` and the milestones
    stay. What an attempt before ours left behind and does not count goes too: unfinished folders,
    and what it committed behind the back of its successor. What is pinned stays as long as `needs`
    says that one of those who pinned it still needs it.
    """
    kept = set(sorted(counting)[-keep:]) | {ref for ref in counting if ref.step in milestones}
    dropped = []
    for ref, keys in _folders(store).items():
        if ref in kept or not (ref in counting or ref.attempt < attempt):
            continue
        folder = store.sub(ref.key)
        names = [key.removeprefix(f"{ref.key}/") for key in keys]
        if SEAL in names:
            pins = [name for name in names if name.startswith(PINS)]
            # The seal first: what is half gone must not be taken for whole.
            if is_pinned(folder, pins, needs) or not unseal(folder, needs):
                continue
        folder.delete(names)
        dropped.append(ref)
    return dropped


def _folders(store: Store) -> dict[CheckpointRef, list[str]]:
    """The keys of each checkpoint's folder, committed or not, its pins among them."""
    found: dict[CheckpointRef, list[str]] = {}
    for info in store.objects():
        match = re.fullmatch(rf"step-(\d{{9,}})/attempt-(\d+)/({PINS})?[^/]+", info.key)
        if match:
            found.setdefault(CheckpointRef(int(match[1]), int(match[2])), []).append(info.key)
    return found


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
