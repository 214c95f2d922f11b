"""Trials on Ray Tune: independent calls of one function, their own results kept elsewhere.

Where the environment names a Ray cluster, the trials run there, on any of its nodes, and the
cluster goes on afterwards: RAY_ADDRESS is `host:port` of its head; IGPT_RAY_RUNTIME_ENV, as JSON,
the part of Ray's runtime environment by which other nodes find this code. Else Ray is started for
the sweep and ended with it, in a folder of its own (its socket's path must stay below 108
characters).

Tune's experiment state goes to a temporary folder that nobody reads again.
"""

import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

# Set before Ray is imported, which reads them then. In this order: no reports to its makers; only
# those who have the token of this machine's user may send it work; workers stay in the folder where
# they were started; Tune draws no tables of its own into the log and writes no TensorBoard files;
# trials do not make way for everything else on the machine, as our other work does not either.
for _name, _value in (
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_AUTH_MODE", "token"),
    ("RAY_CHDIR_TO_TRIAL_DIR", "0"),
    ("RAY_AIR_NEW_OUTPUT", "0"),
    ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
    ("RAY_worker_niceness", "0"),
):
    os.environ.setdefault(_name, _value)

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import JsonLoggerCallback

from igpt.errors import IgptError, UserError

T = TypeVar("T")

log = logging.getLogger("igpt")

#: Tune would write these into the runtime environment of its workers, which Ray shows and logs.
#: They need not go along: each node has its own.
_SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)

_ADDRESS = "host:port of a Ray cluster's head, on one of its nodes"
#: Seconds between signs of life.
_TELL_SECONDS = 5.0
_WITHOUT = "Unset RAY_ADDRESS to start Ray here"


def run_trials(
    function: Callable[[T], None],
    trials: Sequence[T],
    *,
    cpus: int | None,
    dashboard: bool,
    stop: Callable[[], bool],
    finished: Callable[[T, str], None],
    waiting: Callable[[], None] = lambda: None,
) -> list[Exception]:
    """Calls `function` with each trial, several at once, one CPU each; returns what they raised.

    cpus: how many at once; None is all that this process, or the cluster, may use.
    dashboard: whether a Ray of our own serves its dashboard; a cluster has one as it likes.
    stop: looked at all the time; where it says so, no further trial begins.
    finished: called in this process after each trial that ended well, with the host it ran on.
    waiting: called every few seconds while trials are at work, or wait for a CPU: all is well.
    """
    if not trials:
        return []
    # Ray gives each worker the threads of its CPUs, unless the environment says otherwise.
    os.environ.pop("OMP_NUM_THREADS", None)
    cluster = os.environ.get("RAY_ADDRESS")
    temporary = Path(tempfile.mkdtemp(prefix="r", dir=_short_folder()))

    def connect() -> None:
        if cluster is None:
            _start(cpus, dashboard, temporary / "ray")
        else:
            _connect(cluster)

    def fit() -> tune.ResultGrid:
        tuner = tune.Tuner(
            tune.with_resources(_trainable(function), {"cpu": 1}),
            param_space={"trial": tune.grid_search(list(trials))},
            tune_config=tune.TuneConfig(
                num_samples=1,
                reuse_actors=True,
                trial_dirname_creator=_dirname,
                max_concurrent_trials=None if cluster is None else cpus,
            ),
            run_config=tune.RunConfig(
                storage_path=str(temporary / "tune"),
                callbacks=[_json_logger(), _Finished(finished)],
                # A node may be lost, and its trials with it: once more, elsewhere.
                failure_config=tune.FailureConfig(max_failures=0 if cluster is None else 1),
                stop=_Asked(stop, waiting),
                verbose=0,
            ),
        )
        with _hidden(_SECRETS):
            return tuner.fit()

    # Not in the main thread: there Ray and Tune would take signals that are meant for us.
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            thread.submit(connect).result()
            _take_back(signal.SIGTERM)
            errors = thread.submit(fit).result().errors
            return [getattr(error, "cause", None) or error for error in errors]
        finally:
            thread.submit(ray.shutdown).result()
            shutil.rmtree(temporary, ignore_errors=True)


def _start(cpus: int | None, dashboard: bool, folder: Path) -> None:
    """Starts a Ray of our own on this machine."""
    ray.init(
        address="local",
        num_cpus=cpus or len(os.sched_getaffinity(0)),
        include_dashboard=dashboard,
        object_store_memory=128 * 2**20,
        log_to_driver=True,
        _temp_dir=str(folder),
    )


def _connect(address: str) -> None:
    """Joins a Ray cluster that is there. Raises UserError and IgptError."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        raise UserError(f"RAY_ADDRESS is {address!r}", expected=_ADDRESS, mend=_WITHOUT)
    given = os.environ.get("IGPT_RAY_RUNTIME_ENV")
    try:
        # Where nobody listens Ray itself would try for minutes.
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(
            address=address,
            runtime_env=None if given is None else json.loads(given),
            log_to_driver=True,
        )
    except (OSError, RuntimeError) as error:
        why = f"no Ray cluster can be joined at {address}: {error}"
        raise IgptError(why, expected=_ADDRESS, mend=_WITHOUT) from error
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    log.info("the Ray cluster at %s has %d CPUs", address, there.get("CPU", 0))


def _take_back(number: signal.Signals) -> None:
    """Makes our handler the only one again.

    Ray puts one before it that takes the signal for a failure: it aborts the process by an alarm
    three seconds later, whatever ours has made of it.
    """
    signal.signal(number, signal.getsignal(number))
    signal.alarm(0)


@contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Takes variables out of the environment for a while. What has been read of them stays."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


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

    def __init__(self, stop: Callable[[], bool], waiting: Callable[[], None]) -> None:
        self._stop, self._waiting = stop, waiting
        self._told = time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._told = time.monotonic()
            self._waiting()
        return self._stop()


class _Finished(_Unkept, tune.Callback):
    """Tells of the trials that ended well."""

    def __init__(self, finished: Callable[[Any, str], None]) -> None:
        self._finished = finished

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._finished(trial.config["trial"], str(trial.last_result["hostname"]))
