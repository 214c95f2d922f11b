"""Trials on Ray Tune: independent calls of one function, their own results kept elsewhere.

Ray is started for the sweep and ended with it, in a folder of its own (its socket's path must stay
below 108 characters). Tune's experiment state goes to a temporary folder that nobody reads again.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

# Set before Ray is imported, which reads them then. In this order: no reports to its makers; only
# those who have the token of this machine's user may send it work; workers stay in the folder where
# they were started; Tune draws no tables of its own into the log and writes no TensorBoard files.
for _name, _value in (
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_AUTH_MODE", "token"),
    ("RAY_CHDIR_TO_TRIAL_DIR", "0"),
    ("RAY_AIR_NEW_OUTPUT", "0"),
    ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
):
    os.environ.setdefault(_name, _value)

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import JsonLoggerCallback

T = TypeVar("T")


def run_trials(
    function: Callable[[T], None],
    trials: Sequence[T],
    *,
    cpus: int | None,
    dashboard: bool,
    stop: Callable[[], bool],
    finished: Callable[[], None],
) -> list[str]:
    """Calls `function` with each trial, several at once, one CPU each; returns what failed.

    cpus: how many at once; None is all that this process may use.
    stop: looked at all the time; where it says so, no further trial begins.
    finished: called in this process after each trial that ended well.
    """
    if not trials:
        return []
    # Ray gives each worker the threads of its CPUs, unless the environment says otherwise.
    os.environ.pop("OMP_NUM_THREADS", None)
    temporary = Path(tempfile.mkdtemp(prefix="r", dir=_short_folder()))
    try:
        ray.init(
            address="local",
            num_cpus=cpus or len(os.sched_getaffinity(0)),
            include_dashboard=dashboard,
            object_store_memory=128 * 2**20,
            log_to_driver=True,
            _temp_dir=str(temporary / "ray"),
        )
        tuner = tune.Tuner(
            tune.with_resources(_trainable(function), {"cpu": 1}),
            param_space={"trial": tune.grid_search(list(trials))},
            tune_config=tune.TuneConfig(
                num_samples=1, reuse_actors=True, trial_dirname_creator=_dirname
            ),
            run_config=tune.RunConfig(
                storage_path=str(temporary / "tune"),
                callbacks=[_json_logger(), _Finished(finished)],
                stop=_Asked(stop),
                verbose=0,
            ),
        )
        grid = tuner.fit()
        return [str(error).strip().splitlines()[-1] for error in grid.errors]
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def _short_folder() -> str:
    """Where temporary files go, if Ray's sockets below it keep within 107 characters."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= 24 else "/tmp"  # noqa: S108


def _json_logger() -> tune.Callback:
    """Keeps each trial's report where Tune looks for it at the end, and warns where it is not."""
    logger: tune.Callback = JsonLoggerCallback()  # type: ignore[no-untyped-call]
    return logger


def _trainable(function: Callable[[T], None]) -> Callable[[dict[str, T]], None]:
    def trial(config: dict[str, T]) -> None:
        function(config["trial"])
        tune.report({"done": 1})

    return trial


def _dirname(trial: TuneTrial) -> str:
    """Tune would spell out the whole trial, which makes no file name."""
    return str(trial.trial_id)


class _Unkept:
    """Tune pickles its whole experiment, which nobody reads again; this leaves nothing to it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Asked(_Unkept, tune.Stopper):
    """Ends the experiment when the worker is asked to stop."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop()


class _Finished(_Unkept, tune.Callback):
    """Counts the trials that ended well."""

    def __init__(self, finished: Callable[[], None]) -> None:
        self._finished = finished

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._finished()
