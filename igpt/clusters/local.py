"""The cluster `local`: worker processes on this machine, behind a queue.

A submission starts one detached supervisor process (igpt/clusters/supervisor.py), which outlives
the client, waits for its turn and starts the workers.
"""

import contextlib
import hashlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from igpt.clusters.base import ClusterConfig, Launch, Limits, Plan
from igpt.clusters.figures import FiguresConfig
from igpt.data.cache import cache_directory
from igpt.errors import Unreachable, UserError
from igpt.jobs.estimate import counted
from igpt.runs import Run, snapshot
from igpt.runs import events as ev
from igpt.runs.shipped import CODE
from igpt.runs.state import Sight

#: How long the client waits for the supervisor's own sign of life.
LAUNCH_SECONDS = 30.0


class LocalCluster(ClusterConfig):
    """Configuration of a local cluster."""

    kind: Literal["local"] = "local"
    workers: int = Field(default=1, ge=1, description="processes that share each batch")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of each worker; null: cores / workers"
    )
    max_parallel: int = Field(default=1, ge=1, description="runs at once on this machine")
    heartbeat_seconds: float = Field(default=5.0, gt=0, le=15)
    grace_seconds: float = Field(
        default=120.0, gt=0, description="for a checkpoint after being asked to stop"
    )
    figures: FiguresConfig = Field(default_factory=FiguresConfig)

    @property
    def most_workers(self) -> int:
        """Always so many."""
        return self.workers

    def limits(self) -> Limits:
        """Its grace, and the device that the file names."""
        return Limits(self.grace_seconds, device=self.device)

    def threads_per_worker(self) -> int:
        """CPU threads of each worker."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return self.threads or max(1, cores // self.workers)


class LocalBackend:
    """Starts supervisors on this machine."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def plan(self, launch: Launch) -> Plan:
        """The command of the supervisor and what it will start."""
        cluster = self.cluster
        return Plan(
            {
                "cluster": f"local: {counted(cluster.workers, 'worker')} x "
                f"{counted(cluster.threads_per_worker(), 'thread')}, "
                f"at most {counted(cluster.max_parallel, 'run')} at once"
            },
            shlex.join(supervisor_command(launch.run_uri, launch.attempt)),
        )

    def check(self) -> None:
        """This machine is always there; whether it can write the figures shows at once."""
        self.cluster.figures.check()

    def submit(self, run: Run, launch: Launch) -> dict[str, Any]:
        """Starts the supervisor, detached, and waits until it has recorded itself."""
        output = supervisor_file(run, launch.attempt, "log")
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # else cwd goes before PYTHONPATH
        environment.pop(CODE, None)  # of a run that we may be in
        if launch.code is not None:
            code = snapshot.unpack(run.root, launch.code, cache_directory() / "code")
            environment[CODE] = str(code)
            inherited = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = f"{code}{os.pathsep}{inherited}" if inherited else str(code)
        with output.open("wb") as log:
            process = subprocess.Popen(
                supervisor_command(run.uri, launch.attempt),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )
        deadline = time.monotonic() + LAUNCH_SECONDS
        while time.monotonic() < deadline:
            launched = _launched(run)
            if launched is not None and launched.get("pid") == process.pid:
                return launched
            if process.poll() is not None:
                break
            time.sleep(0.05)
        said = output.read_text(errors="replace").strip().splitlines()
        how = "ended at once" if process.poll() is not None else "has not started yet"
        raise Unreachable(
            f"the supervisor of run {run.id} {how}: {said[-1] if said else 'no output'}",
            mend=f"Its output is in {output}; igpt-jobs status {run.id} says how it stands",
        )

    def jobs_of(self, runs: Sequence[Run]) -> tuple[str, ...]:
        """None: the supervisor itself looks at the runs that it waits for."""
        return ()

    def look(self, run: Run) -> Sight:
        """Whether the supervisor's process is there, where it is on this machine."""
        launched = _launched(run)
        if launched is None or launched.get("host") != platform.node():
            return Sight()
        return Sight(alive=process_started(int(launched["pid"])) == launched.get("started"))

    def cancel(self, run: Run) -> bool:
        """Wakes the supervisor up; on another machine, it finds the request by itself."""
        launched = _launched(run)
        if launched is not None and self.look(run).alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(launched["pid"]), signal.SIGUSR1)
                return True
        return False


def supervisor_command(run_uri: str, attempt: int) -> list[str]:
    """How the supervisor of a run is started."""
    return [sys.executable, "-m", "igpt.clusters.supervisor", run_uri, str(attempt)]


def state_folder() -> Path:
    """Where this machine keeps its queue and the supervisors' own output."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "igpt-jobs"


def local_key(run: Run) -> str:
    """The run among all runs of this machine; equal work in two stores has equal ids."""
    place = os.path.realpath(run.uri) if run.record.local_path("spec.yaml") else run.uri
    return f"{run.id}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def supervisor_file(run: Run, attempt: int, kind: str) -> Path:
    """The log or lock of an attempt's supervisor; its folder is made."""
    folder = state_folder() / "supervisors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made: {error.strerror}",
            expected="a folder for the state of this machine's runs",
            mend="Set XDG_STATE_HOME to a folder that can be written",
        ) from None
    return folder / f"{local_key(run)}-{attempt:04d}.{kind}"


def process_started(pid: int) -> str | None:
    """When a living process started, as the kernel counts it; None where there is none.

    With the process id it identifies a process, also after the id has been used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _launched(run: Run) -> dict[str, Any] | None:
    launched = run.last_event(ev.LAUNCHED)
    return launched.fields if launched else None
