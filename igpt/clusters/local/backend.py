"""Starts the supervisors of runs on this machine, looks at them, cancels them."""

import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from igpt.clusters.base import Launch, Plan
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.local.place import process_started, supervisor_file
from igpt.errors import Unreachable
from igpt.jobs.estimate import counted
from igpt.runs import Run, snapshot
from igpt.runs import events as ev
from igpt.runs.shipped import CODE
from igpt.runs.state import Sight
from igpt.storage.cache import cache_directory

#: How long the client waits for the supervisor's own sign of life.
LAUNCH_SECONDS = 30.0


class LocalBackend:
    """Starts supervisors on this machine."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def plan(self, launch: Launch) -> Plan:
        """The command of the supervisor and what it will start."""
        cluster = self.cluster.of_job(ray=launch.ray)
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
    return [sys.executable, "-m", "igpt.clusters.local.supervisor", run_uri, str(attempt)]


def _launched(run: Run) -> dict[str, Any] | None:
    launched = run.last_event(ev.LAUNCHED)
    return launched.fields if launched else None
