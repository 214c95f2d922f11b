"""The parent process of a node's ranks: starts them, ships their output, keeps the heartbeat.

It stands between the ranks and the store so that the last lines of a killed rank survive, and so
that a store that is away for a while costs no step: what cannot be shipped now is kept and tried
again.
"""

import contextlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from igpt.errors import IgptError
from igpt.runs import Run
from igpt.runs.failures import REQUEUE, FailureClass, RankExit
from igpt.runs.logs import log_key

log = logging.getLogger("igpt")

#: The reason to stop at once and write nothing more: the run's record is gone.
DELETED = "deleted"

_TICK = 0.1  # seconds between looks at the ranks
_SHIP_SECONDS = 1.0  # between shipments of new output
_SETTLE_SECONDS = 5.0  # for the other ranks to end by themselves after one ended badly
_KEEP_BYTES = 8 * 2**20  # output kept for a store that is away


@dataclass(frozen=True)
class Ranks:
    """What to start on this node."""

    workers: int
    environment: Mapping[str, str]  # for all ranks, beside RANK and the like
    master_port: int
    heartbeat_seconds: float
    grace_seconds: float


class RankOutput:
    """One rank's output on its way to the store, in numbered parts."""

    def __init__(self, run: Run, attempt: int, rank: int, stream: IO[bytes]) -> None:
        self._run, self._attempt, self._rank = run, attempt, rank
        self._pending = bytearray()
        self._dropped = 0
        self._part = 0
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def ship(self, *, all_of_it: bool = False) -> None:
        """Writes the whole lines that have come since the last shipment, or all that has."""
        with self._lock:
            text, dropped = bytes(self._pending), self._dropped
        if not all_of_it and len(text) < _KEEP_BYTES // 2:
            text = text[: text.rfind(b"\n") + 1]
        if not text:
            return
        note = f"[{dropped} bytes of output were lost while the store was away]\n".encode()
        key = log_key(self._attempt, self._rank, self._part)
        self._run.record.put(key, (note if dropped else b"") + text)
        self._part += 1
        with self._lock:
            # What was dropped from the front while we wrote had been written by us.
            del self._pending[: max(0, len(text) - (self._dropped - dropped))]
            self._dropped = 0

    def finish(self) -> None:
        """Waits for the end of the output."""
        self._reader.join(timeout=5)

    def _read(self, stream: IO[bytes]) -> None:
        while chunk := os.read(stream.fileno(), 65536):
            with self._lock:
                self._pending += chunk
                excess = len(self._pending) - _KEEP_BYTES
                if excess > 0:
                    del self._pending[:excess]
                    self._dropped += excess


def run_ranks(
    run: Run, attempt: int, ranks: Ranks, asked_to_stop: Callable[[], str | None]
) -> list[RankExit]:
    """Starts the ranks of an attempt, watches them to their end, returns how each ended, in order.

    asked_to_stop: looked at all the time; a reason asks the ranks to stop, with their grace.
    """
    with tempfile.TemporaryDirectory(prefix="igpt-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        processes = [_start(run, attempt, rank, ranks, scratch) for rank in range(ranks.workers)]
        outputs = [
            RankOutput(run, attempt, rank, process.stdout)
            for rank, process in enumerate(processes)
            if process.stdout is not None
        ]
        try:
            exits = _watch(run, attempt, ranks, processes, outputs, scratch, asked_to_stop)
        finally:
            for process in processes:
                _signal(process, signal.SIGKILL)
                process.wait()
        for output in outputs:
            output.finish()
        if asked_to_stop() != DELETED:
            _quietly(lambda: ship_all(outputs, all_of_it=True))
            _quietly(lambda: heartbeat(run, attempt, "running", read_progress(scratch)))
        return exits


def _watch(
    run: Run,
    attempt: int,
    ranks: Ranks,
    processes: list[subprocess.Popen[bytes]],
    outputs: list[RankOutput],
    scratch: Path,
    asked_to_stop: Callable[[], str | None],
) -> list[RankExit]:
    exits: dict[int, RankExit] = {}
    shipped = beat = 0.0
    kill_at: float | None = None
    stopping = killed = False
    while len(exits) < len(processes):
        now = time.monotonic()
        for rank, process in enumerate(processes):
            if rank not in exits and process.poll() is not None:
                exits[rank] = _exit(rank, process.returncode, scratch, torn_down=killed)
                if process.returncode not in (0, REQUEUE) and kill_at is None:
                    kill_at = now + _SETTLE_SECONDS
        if not stopping and (reason := asked_to_stop()):
            log.info("stopping the ranks: %s", reason)
            stopping = True
            grace = 0.0 if reason == DELETED else ranks.grace_seconds
            kill_at = min(kill_at or float("inf"), now + grace)
            for process in processes:
                _signal(process, signal.SIGTERM)
        if kill_at is not None and now > kill_at:
            killed = True
            for process in processes:
                _signal(process, signal.SIGKILL)
        if now - shipped > _SHIP_SECONDS:
            _quietly(lambda: ship_all(outputs))
            shipped = now
        if now - beat > ranks.heartbeat_seconds:
            _quietly(lambda: heartbeat(run, attempt, "running", read_progress(scratch)))
            beat = now
        time.sleep(_TICK)
    return list(exits.values())


def ship_all(outputs: list[RankOutput], *, all_of_it: bool = False) -> None:
    """Writes what has come from every rank."""
    for output in outputs:
        output.ship(all_of_it=all_of_it)


def heartbeat(run: Run, attempt: int, phase: str, progress: dict[str, Any]) -> None:
    """Replaces the sign of life of an attempt."""
    body = {"time": time.time(), "phase": phase, "host": platform.node(), "progress": progress}
    run.record.put(f"attempts/{attempt:04d}/heartbeat.json", json.dumps(body).encode())


def read_progress(scratch: Path) -> dict[str, Any]:
    """What rank 0 said last of its progress."""
    try:
        body: dict[str, Any] = json.loads((scratch / "progress.json").read_text())
    except FileNotFoundError:
        return {}
    return body


def _start(
    run: Run, attempt: int, rank: int, ranks: Ranks, scratch: Path
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        **ranks.environment,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks.workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(ranks.master_port),
        "IGPT_SCRATCH": str(scratch),
        "IGPT_PARENT": str(os.getpid()),
        "TMPDIR": str(scratch),  # what a killed rank leaves behind goes with the scratch folder
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "igpt.jobs.worker", run.uri, str(attempt)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment,
    )


def _exit(rank: int, code: int, scratch: Path, *, torn_down: bool) -> RankExit:
    """How a rank ended, with what it said itself where it could."""
    try:
        said = json.loads((scratch / f"failure-{rank}.json").read_text())
    except FileNotFoundError:
        return RankExit(rank, code, torn_down=torn_down and code < 0)
    failure = FailureClass(said["class"]) if said["class"] else None
    return RankExit(rank, code, failure, said["reason"])


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the rank alone; KILL to all that it started as well."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if number is signal.SIGKILL:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            os.kill(process.pid, number)


def _quietly(action: Callable[[], object]) -> None:
    """A store that is away must not end the ranks; it is said, and tried again."""
    try:
        action()
    except IgptError as error:
        log.warning("%s", error)
