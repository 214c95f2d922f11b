"""Several real worker processes that train together, and a sink in a file."""

import itertools
import json
import multiprocessing
import os
import signal
import tempfile
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which every optimizer imports: once, before the workers are forked

from igpt.data.dataset import open_dataset
from igpt.model.config import ModelConfig
from igpt.model.transformer import ImageGPT
from igpt.storage import open_store
from igpt.training import parallel
from igpt.training.checkpoint import list_committed
from igpt.training.config import TrainingConfig
from igpt.training.loop import Outcome, train

MODEL = ModelConfig(layers=2, width=16, heads=2, resolution=4, colors=16)


@dataclass
class MemorySink:
    """Keeps everything; lines count once they are flushed."""

    lines: list[dict[str, object]] = field(default_factory=list)
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    shown: dict[str, object] = field(default_factory=dict)
    waiting: list[dict[str, object]] = field(default_factory=list)
    taken_over: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)  # the writer flushes, too

    def metrics(self, lines: list[dict[str, object]]) -> None:
        with self.lock:
            self.waiting += lines

    def flush(self) -> None:
        with self.lock:
            self.lines += self.waiting
            self.waiting = []

    def event(self, kind: str, **fields: object) -> None:
        self.events.append((kind, fields))

    def progress(self, **fields: object) -> None:
        self.shown = fields

    def superseded(self) -> bool:
        return self.taken_over

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


@dataclass(frozen=True)
class Job:
    """What each worker of a run is told."""

    data: str
    store: str
    config: TrainingConfig
    attempt: int = 1
    resume: bool = False  # from the newest committed checkpoint
    stop_at: int | None = None  # the meeting at which rank `culprit` asks to stop
    kill_at: int | None = None  # or kills itself
    culprit: int = 0


def configuration(steps: int, **changes: Any) -> TrainingConfig:
    """A short run; `changes` are sections, by name."""
    sections: dict[str, Any] = {
        "schedule": {"steps": steps, "warmup": 5},
        "batch": {"global": 12},
        "validation": {"every": 10, "samples": 13},
        "checkpoints": {"every_steps": 10, "every_minutes": None},
        "sync_every": 3,
    }
    return TrainingConfig.model_validate_json(json.dumps(sections | changes))


def run_here(job: Job, sink: MemorySink, model: ImageGPT | None = None, **more: Any) -> Outcome:
    """One worker, in this process."""
    store = open_store(job.store)
    meetings = itertools.count(1)
    given: dict[str, Any] = {
        "rank": 0,
        "world_size": 1,
        "device": "cpu",
        "checkpoints": store,
        "attempt": job.attempt,
        "sink": sink,
        "stop": lambda: next(meetings) == job.stop_at,
        "start": list_committed(store)[-1] if job.resume else None,
    }
    return train(
        job.config, model or ImageGPT(MODEL, seed=1), open_dataset(job.data), **(given | more)
    )


def run_workers(job: Job, world_size: int, timeout: float = 120) -> list[Any]:
    """What each rank returned: (Outcome, lines, weights), or None where it died."""
    context = multiprocessing.get_context("forkserver")  # imports torch once, in a clean process
    context.set_forkserver_preload(["tests.training.workers"])
    with tempfile.TemporaryDirectory() as folder:
        workers: list[tuple[Any, Connection]] = []
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (job, rank, world_size, f"file://{folder}/meet", theirs)
                process = context.Process(target=_work, args=arguments)
                process.start()
                theirs.close()
                workers.append((process, ours))
            return [_receive(ours, timeout) for _, ours in workers]
        finally:
            for process, ours in workers:
                process.kill()
                process.join()
                ours.close()


def _receive(pipe: Connection, timeout: float) -> Any:
    if not pipe.poll(timeout):
        raise TimeoutError(f"a worker said nothing for {timeout} s")
    try:
        return pipe.recv()
    except EOFError:
        return None


def _work(job: Job, rank: int, world_size: int, rendezvous: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    if rank != 0 and job.kill_at is not None:  # its peer is going to die: no traceback wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sink = _Sink(job, rank)
    model = ImageGPT(MODEL, seed=rank)  # rank 0's is the one that counts
    device = torch.device("cpu")
    limit = timedelta(seconds=60)
    with parallel.process_group(rank, world_size, device, rendezvous=rendezvous, timeout=limit):
        store = open_store(job.store)
        outcome = train(
            job.config,
            model,
            open_dataset(job.data),
            rank=rank,
            world_size=world_size,
            device=device,
            checkpoints=store,
            attempt=job.attempt,
            sink=sink,
            stop=sink.stop,
            start=list_committed(store)[-1] if job.resume else None,
        )
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    pipe.send((outcome, sink.lines, weights))


class _Sink(MemorySink):
    """Flushes into a file beside the store too, as lines that outlive the process."""

    def __init__(self, job: Job, rank: int) -> None:
        super().__init__()
        self.job = job
        self.rank = rank
        self.meetings = 0

    def flush(self) -> None:
        with self.lock:
            with metrics_file(self.job).open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in self.waiting)
                file.flush()
                os.fsync(file.fileno())
            super().flush()

    def stop(self) -> bool:
        """Called at every meeting on every rank, before the meeting's steps are reported."""
        self.meetings += 1
        if self.rank != self.job.culprit:
            return False
        if self.meetings == self.job.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.meetings == self.job.stop_at


def metrics_file(job: Job) -> Path:
    """Where rank 0 of this attempt flushes its lines."""
    return Path(job.store).with_suffix(f".{job.attempt}.jsonl")


def flushed(job: Job) -> list[dict[str, Any]]:
    """What an attempt left behind."""
    path = metrics_file(job)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def merged(*attempts: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The step lines of a run's one history: each attempt rules from its first step on."""
    history: dict[int, dict[str, Any]] = {}
    for lines in attempts:
        steps = {line["step"]: line for line in lines if "loss" in line}
        history = {step: line for step, line in history.items() if step < min(steps)} | steps
    return history
