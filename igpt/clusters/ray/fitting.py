"""One attempt by Ray Train: workers placed and started together, watched, and what became of them.

Ray Train starts the workers, gives out the ranks and ends all of them when one is lost. Whether
another attempt follows is for our own budgets to say, so it never tries again itself. How many
workers `{min, max}` come to is ours as well (`room`): Ray Train's elastic mode counts what others
have in use, and to grow it would end the workers and start from the last checkpoint; we ask the
ranks to save first, so that no step is lost.
"""

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import ray
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from igpt.clusters.ray.config import RayCluster
from igpt.clusters.ray.orphans import wait_for_orphans
from igpt.clusters.ray.rank import train
from igpt.clusters.ray.ranks import ByRanks
from igpt.clusters.ray.room import Size, no_trials, workers_for
from igpt.clusters.ray.verdict import verdict_of
from igpt.clusters.ray.watch import Watch
from igpt.jobs.base import find_job
from igpt.runs import Run
from igpt.runs.failures import FailureClass, Verdict
from igpt.storage.patience import insist

#: How often Ray Train itself tries to start the workers again.
_STARTS = 3
#: For the thread of `fit` to end after the connection to Ray has.
_END_SECONDS = 60.0
_TICK = 0.2


@dataclass
class Fit:
    """`DataParallelTrainer.fit` in a thread of its own: whoever looks after the run goes on."""

    trainer: DataParallelTrainer
    error: Exception | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:  # of many kinds: the verdict tells them apart
            self.error = error


def fit(
    run: Run,
    attempt: int,
    cluster: RayCluster,
    size: Size,
    asked_to_stop: Callable[[], str | None],
) -> Verdict:
    """Works on one attempt to its end. Ray must be connected.

    size: what the attempts before have found out of the room there is; this one adds to it.
    asked_to_stop: whether the run as a whole is to stop; the ranks find most reasons by themselves.
    """
    watch = Watch(run, attempt, cluster, size)
    goes_on = partial(_goes_on, watch, asked_to_stop)
    spreads = find_job(insist(run.spec).job).ray  # over the cluster, by itself
    least, most = (1, 1) if spreads else (cluster.least_workers, cluster.most_workers)
    if spreads:
        watch.waits_for = f"1 worker x {cluster.each_in_words}"
        if reason := no_trials(cluster.each()):
            return Verdict("failed", FailureClass.USER_ERROR, reason)
    wait_for_orphans(run, attempt, cluster.grace_seconds, goes_on)
    workers = workers_for(cluster.each(), cluster.placement, least, most, goes_on, size.hoped)
    if not workers:
        return Verdict("stopped", FailureClass.PREEMPTED, "stopped before it began")
    size.begin(workers)
    watch.may_grow = workers < most
    # The least may have to be waited for; of more, some may have gone to others meanwhile.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "604800" if workers == least else "60"
    with tempfile.TemporaryDirectory(prefix="igpt-") as folder:
        doing = Fit(trainer(run, attempt, cluster, workers, folder))
        while doing.thread.is_alive():
            watch.look(asked_to_stop())
            if watch.lost_patience:
                ray.shutdown()  # the workers and all that they started end with the connection
                doing.thread.join(_END_SECONDS)
                break
            doing.thread.join(_TICK)
    error = None if watch.lost_patience else doing.error
    return verdict_of(run, attempt, error, watch.asked)


def trainer(
    run: Run, attempt: int, cluster: RayCluster, workers: int, folder: str
) -> DataParallelTrainer:
    """What is started. folder: for Ray Train's own notes, which nobody reads again."""
    return DataParallelTrainer(
        train,
        train_loop_config={"run": run.uri, "attempt": attempt},
        backend_config=ByRanks(),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=cluster.each(),
            placement_strategy=cluster.placement,
        ),
        run_config=RunConfig(  # type: ignore[arg-type] # which names V1's and takes V2's
            name=f"{run.id}-a{attempt}",
            storage_path=folder,
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=_STARTS
            ),
            # Where Ray ends a worker, its rank is to save; Ray would kill that as well.
            worker_runtime_env={"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}},
        ),
    )


def _goes_on(watch: Watch, asked_to_stop: Callable[[], str | None]) -> bool:
    """Whether to go on waiting; meanwhile there are signs of life."""
    watch.beat()
    return asked_to_stop() is None
