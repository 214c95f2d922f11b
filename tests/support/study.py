"""A study small enough for tests: real digits as shards, a tiny network, the local cluster."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from igpt.clusters import status, submit
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.local.place import process_started
from igpt.config import load
from igpt.data import ArraySource, Palette, write_shards
from igpt.jobs import find_job
from igpt.runs import Run
from igpt.runs.attempts import read_metrics
from igpt.runs.record import open_run
from igpt.runs.state import RunState, Status
from igpt.storage import Store

TRAINING = """
data: data/digits
model: {layers: 2, width: 32, heads: 2}
optimizer: {learning_rate: 0.003}
schedule: {steps: 40, warmup: 4}
batch: {global: 12, micro: 12}
validation: {every: 20, samples: 64}
checkpoints: {every_steps: 5, every_minutes: null}
sync_every: 1
"""


def write_digits(store: Store, images: int = 300) -> None:
    """The first of scikit-learn's digits as shards `data/digits`, 8x8 in 16 colours."""
    digits = load_digits()
    grey = (digits.images[:images] * (255 / 16)).astype(np.uint8)
    pictures = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    splits = [
        "test" if i % 5 == 4 else "validation" if i % 5 == 3 else "train" for i in range(images)
    ]
    source = ArraySource(
        pictures, digits.target[:images], splits=splits, classes=[str(i) for i in range(10)]
    )
    write_shards(
        source,
        store.sub("data/digits"),
        resolution=8,
        palette=Palette.fit(pictures.reshape(-1, 3), 16),
        samples_per_shard=64,
    )


def cluster(**fields: Any) -> LocalCluster:
    """A local cluster that looks often and runs on one thread a worker."""
    return LocalCluster(**{"threads": 1, "heartbeat_seconds": 0.3, **fields})


def start(store: Store, where: LocalCluster, *overrides: str, text: str = TRAINING) -> Run:
    """Submits a pretraining of the digits."""
    job = find_job("pretrain")
    config = load(job.config, text, "test.yaml", overrides)
    return submit(store, job, config, where, folder=Path("/"), arguments=["test"], name="tiny").run


def until(condition: Callable[[], Any], what: str, seconds: float = 240.0) -> Any:
    """Waits for something that must come; fails with `what` if it does not.

    What takes long is looked at less often, as each look costs what is waited for a part of a CPU.
    """
    begun = time.monotonic()
    deadline = begun + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05 if time.monotonic() - begun < 10 else 0.3)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def ended(run: Run, seconds: float = 120.0) -> Status:
    """The status of a run once it is no longer active, its supervisor gone."""
    until(lambda: not status(run).state.active, f"{run.id} ends", seconds)
    until(lambda: not processes(run), f"the processes of {run.id} are gone", 30)
    return status(run)


def reached(run: Run, step: int) -> None:
    """Waits until the run has committed a checkpoint of at least this step, or has ended."""

    def there() -> bool:
        saved = [e.fields["step"] for e in run.events() if e.kind == "checkpointed"]
        return max(saved, default=0) >= step

    until(there, f"{run.id} reaches step {step}")


def losses(run: Run) -> dict[int, float]:
    """The merged training losses of a run by step; fails where a step is there twice."""
    lines = [line for line in read_metrics(run.record) if "loss" in line]
    by_step = {line["step"]: line["loss"] for line in lines}
    assert len(by_step) == len(lines), "a step is there twice"
    return by_step


def digests(run: Run) -> dict[int, str]:
    """The merged token digests of a run by step."""
    return {line["step"]: line["digest"] for line in read_metrics(run.record) if "digest" in line}


def processes(run: Run, module: str = "igpt.") -> list[int]:
    """The living processes of a run: its supervisor (igpt.clusters) and workers (igpt.jobs)."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if (
                state != "Z"
                and run.uri.encode() in words
                and any(word.startswith(module.encode()) for word in words)
            ):
                found.append(int(folder.name))
    return sorted(found)


def send(pids: list[int], number: signal.Signals) -> None:
    """A signal to each process that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill(run: Run) -> None:
    """Ends every process of a run at once, and returns when all are dead.

    A process that is about to end has no command line any more, by which `processes` would find it.
    """
    victims = processes(run)
    send(victims, signal.SIGKILL)
    until(
        lambda: not processes(run) and not any(map(process_started, victims)),
        f"all of {run.id} are dead",
    )


@contextmanager
def cleaned(store: Store) -> Iterator[None]:
    """Ends whatever the runs of a store still have running, also after a failure."""
    try:
        yield
    finally:
        for identifier in store.children("runs"):
            run = open_run(store, identifier)
            deadline = time.monotonic() + 10
            while (alive := processes(run)) and time.monotonic() < deadline:
                send(alive, signal.SIGKILL)
                time.sleep(0.05)


FINISHED = RunState.FINISHED
