"""One attempt by Ray Train: workers placed and started together, watched, and what became of them.

Ray Train finds the room, starts the workers, gives out the ranks and ends all of them when one is
lost. Whether another attempt follows is for our own budgets to say, so it never tries again itself.
With `workers: {min, max}` it starts as many as there is room for. To grow it would end the workers
and start from the last checkpoint; we ask the ranks to save first, so that no step is lost.
"""

import logging
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from igpt.clusters.exits import read_exits
from igpt.clusters.node import heartbeat
from igpt.clusters.outcome import insist
from igpt.clusters.ray.config import Elastic, RayCluster
from igpt.clusters.ray.rank import (
    Meeting,
    describe_place,
    meeting_to_json,
    read_meeting,
    remember_meeting,
    train,
)
from igpt.clusters.ray.room import draining, room_for
from igpt.clusters.requests import ask_to_stop
from igpt.errors import IgptError, NotFound
from igpt.jobs.base import find_job
from igpt.runs import Run
from igpt.runs.failures import FailureClass, RankExit, Verdict, classify

log = logging.getLogger("igpt")

#: Beyond their grace, until workers that do not come back are ended by force.
_PATIENCE_SECONDS = 60.0
#: Seconds between looks at nodes that are about to be taken away.
_DRAIN_SECONDS = 2.0
_TICK = 0.2


class Rendezvous(Backend):
    """Tells all workers who they are and where their ranks meet; the group is the ranks' own."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called by Ray Train when all workers are there, in the order of ranks."""
        places = worker_group.execute(describe_place)
        meeting = Meeting(secrets.token_hex(8), tuple(places))
        worker_group.execute(remember_meeting, meeting_to_json(meeting))


class ByRanks(TorchConfig):
    """No process group in Ray's own workers, and no torch: only their ranks compute."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What prepares the workers."""
        return Rendezvous

    @property
    def train_func_context(self) -> type[AbstractContextManager[None]]:
        """Nothing around the train function: torch would take hold of the device."""
        return nullcontext


@dataclass
class Fit:
    """`TorchTrainer.fit` in a thread of its own, so that whoever looks after the run can go on."""

    trainer: TorchTrainer
    error: TrainingFailedError | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except TrainingFailedError as error:
            self.error = error
        except Exception as error:  # ended by force, from the other thread
            log.warning("Ray Train ended: %s", error)


def fit(
    run: Run, attempt: int, cluster: RayCluster, asked_to_stop: Callable[[], str | None]
) -> Verdict:
    """Works on one attempt to its end. Ray must be connected.

    asked_to_stop: whether the run as a whole is to stop; the ranks find most reasons by themselves.
    """
    with tempfile.TemporaryDirectory(prefix="igpt-") as folder:
        doing = Fit(trainer(run, attempt, cluster, folder))
        watch = _Watch(run, attempt, cluster)
        while doing.thread.is_alive():
            watch.look(asked_to_stop())
            if watch.lost_patience:
                ray.shutdown()  # the workers and all that they started end with the connection
                doing.thread.join(_PATIENCE_SECONDS)
                break
            doing.thread.join(_TICK)
    return verdict_of(run, attempt, doing.error, watch.asked)


def trainer(run: Run, attempt: int, cluster: RayCluster, folder: str) -> TorchTrainer:
    """What is started. folder: for Ray Train's own notes, which nobody reads again."""
    alone = find_job(run.spec().job).ray  # it spreads its work over the cluster itself
    workers: int | tuple[int, int] = 1
    if not alone:
        wanted = cluster.workers
        workers = (wanted.min, wanted.max) if isinstance(wanted, Elastic) else wanted
    return TorchTrainer(
        train,
        train_loop_config={"run": run.uri, "attempt": attempt},
        torch_config=ByRanks(),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=cluster.each(),
            placement_strategy=cluster.placement,
            accelerator_type=cluster.accelerator_type,
            elastic_resize_monitor_interval_s=float("inf"),
        ),
        run_config=RunConfig(
            name=f"{run.id}-a{attempt}",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            # Where Ray ends a worker, its rank is to save; Ray would kill that as well.
            worker_runtime_env={"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}},
        ),
    )


class _Watch:
    """What the driver sees and does while an attempt is worked on."""

    def __init__(self, run: Run, attempt: int, cluster: RayCluster) -> None:
        self.run = run
        self.attempt = attempt
        self.cluster = cluster
        self.meeting: Meeting | None = None
        self.asked: str | None = None  # why the ranks were asked to stop, by us
        self.ordered: float | None = None  # since when it is to stop
        self.due = {"resize": time.monotonic() + cluster.resize_seconds}

    @property
    def lost_patience(self) -> bool:
        """Whether it was to stop, and had all the time that it needs."""
        if self.ordered is None:
            return False
        grace = self.cluster.grace_seconds + _PATIENCE_SECONDS if self.meeting else 0.0
        return time.monotonic() - self.ordered > grace

    def look(self, reason: str | None) -> None:
        """Looks at all that is due. reason: why the run is to stop, if it is."""
        if reason is not None and self.ordered is None:
            self.ordered = time.monotonic()
            self.ask(reason)
        if self.meeting is None:
            if self._every("beat", self.cluster.heartbeat_seconds / 2):
                self.wait()
            return
        if self.asked is None and self._every("drain", _DRAIN_SECONDS):
            self.make_way(self.meeting)
        if self.asked is None and self._every("resize", self.cluster.resize_seconds):
            self.grow(self.meeting)

    def wait(self) -> None:
        """Before the workers are there, the sign of life is ours."""
        try:
            self.meeting = read_meeting(self.run, self.attempt)
        except NotFound:
            self._write(partial(heartbeat, self.run, self.attempt, "queued", {}))
        except IgptError as error:
            log.warning("%s", error)

    def make_way(self, meeting: Meeting) -> None:
        """Asks the ranks to save, where a node of theirs is about to be taken away."""
        leaving = draining()
        hosts = {place.host for place in meeting.places if place.node in leaving}
        if hosts:
            self.ask(f"{', '.join(sorted(hosts))} is being drained")

    def grow(self, meeting: Meeting) -> None:
        """Asks the ranks to save, where there is room for more of them."""
        if isinstance(self.cluster.workers, int):
            return
        now = len(meeting.places)
        possible = min(self.cluster.workers.max, now + room_for(self.cluster.each()))
        if possible > now:
            self.ask(f"there is room for {possible} workers, {now} are at work")

    def ask(self, reason: str) -> None:
        """Makes the ranks save and stop."""
        log.info("asking the ranks to stop: %s", reason)
        self.asked = reason
        self._write(partial(ask_to_stop, self.run, self.attempt, reason))

    def _write(self, action: Callable[[], object]) -> None:
        try:
            action()
        except IgptError as error:
            log.warning("%s", error)

    def _every(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self.due.get(what, 0.0):
            return False
        self.due[what] = now + seconds
        return True


def verdict_of(
    run: Run, attempt: int, error: TrainingFailedError | None, asked: str | None
) -> Verdict:
    """The verdict from what the parents of the ranks said, and from what Ray saw of them."""
    if insist(partial(run.record.exists, "result.json")):
        return Verdict("finished")
    try:
        world_size = len(insist(partial(read_meeting, run, attempt)).places)
    except NotFound:
        if error is None:
            return Verdict("stopped", FailureClass.PREEMPTED, asked or "stopped before it began")
        reason = f"Ray could not start the workers: {last_line(error)}"
        return Verdict("failed", FailureClass.CRASH, reason)
    said = [insist(partial(read_exits, run, attempt, rank)) for rank in range(world_size)]
    exits: list[RankExit] = [one for own in said for one in own or ()]
    missing = [rank for rank, own in enumerate(said) if own is None]
    told = [one for one in exits if one.failure is not None and not one.torn_down]
    if missing and not told:
        return _lost(missing, error)
    verdict = classify(exits)
    if verdict.outcome == "stopped" and asked is not None:
        return Verdict("stopped", FailureClass.PREEMPTED, f"{asked}; saved")
    return verdict


def _lost(missing: list[int], error: TrainingFailedError | None) -> Verdict:
    """The verdict over workers of Ray that went without a word: with their nodes, or alone."""
    causes: dict[int, Exception] = {}
    if isinstance(error, WorkerGroupError):
        causes = dict(error.worker_failures)
    for rank in missing:
        if rank in causes:
            cause = str(causes[rank])
            memory = "OutOfMemory" in cause or "memory pressure" in cause
            failure = FailureClass.OUT_OF_MEMORY if memory else FailureClass.NODE
            return Verdict(
                "failed", failure, f"the worker of rank {rank}: {last_line(causes[rank])}"
            )
    ranks = ", ".join(map(str, missing))
    return Verdict("failed", FailureClass.NODE, f"the worker of rank {ranks} gave no account")


def last_line(error: Exception) -> str:
    """What an error of Ray's comes down to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
