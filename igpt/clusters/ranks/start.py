"""Starting a rank, and sending it a signal."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from igpt.runs import Run

#: For imports, data and compilation, before the first step can be late.
START_SECONDS = 600.0
_FINDING_SECONDS = 120.0  # for the parents to see that no step is made, and to ask every rank
_FOR_EVER = 7 * 86_400.0  # where nobody looks whether steps are made


@dataclass(frozen=True)
class Ranks:
    """What to start on this node."""

    workers: int  # ranks on this node
    master_port: int
    heartbeat_seconds: float
    grace_seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)  # for all ranks
    master_address: str = "127.0.0.1"
    node: int = 0  # node 0 has rank 0, and keeps the heartbeat
    nodes: int = 1
    hang_seconds: float | None = None  # without a step is a hang; None: it never is

    @property
    def world_size(self) -> int:
        """Ranks on all nodes."""
        return self.workers * self.nodes

    @property
    def exchange_seconds(self) -> float:
        """How long a rank waits for its peers: a stuck one is to be found, and named, before."""
        if self.hang_seconds is None:
            return _FOR_EVER
        return self.hang_seconds + START_SECONDS + _FINDING_SECONDS

    @property
    def first(self) -> int:
        """The rank of this node's first."""
        return self.workers * self.node


def start(
    run: Run, attempt: int, rank: int, ranks: Ranks, scratch: Path, hold: int
) -> "subprocess.Popen[bytes]":
    """One rank of an attempt, in a session of its own; its output is to be read.

    scratch: a folder that it shares with this process, and hold: what keeps it for both.
    """
    environment = {
        **os.environ,
        **ranks.environment,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank - ranks.first),
        "WORLD_SIZE": str(ranks.world_size),
        "MASTER_ADDR": ranks.master_address,
        "MASTER_PORT": str(ranks.master_port),
        "IGPT_SCRATCH": str(scratch),
        "IGPT_PARENT": str(os.getpid()),
        "IGPT_GRACE": str(ranks.grace_seconds),
        "IGPT_EXCHANGE": str(ranks.exchange_seconds),
        "TMPDIR": str(scratch),  # what a killed rank leaves behind goes with the scratch folder
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "igpt.jobs.worker", run.uri, str(attempt)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(hold,),
        env=environment,
    )


def send(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """A signal to the rank alone; KILL to all that it started as well."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if number is signal.SIGKILL:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            os.kill(process.pid, number)
