"""Ray on one node of an allocation: `ray start`, for the head or for a node that joins it.

Nothing is left to Ray to guess: it knows no Slurm, and would take the whole machine, the first
address that it finds, and the ports that the next job takes as well.
"""

import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from igpt.clusters.slurm import ray_guard

log = logging.getLogger("igpt")

#: What `ray start` says once the head knows the node.
_STARTED = "Ray runtime started."
#: Nothing of ours puts large objects there; Ray would take a third of the memory.
_OBJECT_STORE_BYTES = 128 * 2**20
#: Below the ports that the system gives to connections.
_PORTS = range(20_000, 32_000)
#: The path of a socket has so many characters at most; below Ray's folder it is one like this.
_SOCKET_CHARACTERS = 107
_SOCKET = "/session_2026-11-24_17-40-13_123456_1234567/sockets/plasma_store"
_KEEP_BYTES, _KEEP_ALL_BYTES = 256 * 2**10, 16 * 2**20
_WORDS = 400  # characters of a reason
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Ports:
    """Where a head listens. All others are given by the system, and told by the head."""

    head: int
    client: int  # Ray's own remote client's, which cannot be left out
    dashboard: int


@dataclass(frozen=True)
class RayNode:
    """What Ray is on one node."""

    address: str  # of the node, as the others reach it
    cpus: int
    gpus: int
    role: Ports | str  # of the head, or its address:port for a node that joins it


def start_command(node: RayNode, folder: Path) -> list[str]:
    """`ray start` of this very Python, in the foreground; folder: for Ray's sockets and logs."""
    if isinstance(node.role, Ports):
        role = [
            "--head",
            f"--port={node.role.head}",
            f"--ray-client-server-port={node.role.client}",
            "--include-dashboard=true",
            f"--dashboard-host={node.address}",
            f"--dashboard-port={node.role.dashboard}",
            "--disable-usage-stats",
        ]
    else:
        role = [f"--address={node.role}"]
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--log-color=false", "--block"),
        *role,
        f"--node-ip-address={node.address}",
        f"--num-cpus={node.cpus}",
        f"--num-gpus={node.gpus}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={folder}",
        # The system's choice: fixed ones may be another job's.
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
    ]


def environment(token: Path) -> dict[str, str]:
    """What every process that is to find this Ray has to have in its environment."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def free_ports(key: str, count: int, is_free: Callable[[int], bool]) -> list[int]:
    """Ports that are free, looked for from a place that depends on the key: jobs differ."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % len(_PORTS)
    around = (_PORTS[(start + step) % len(_PORTS)] for step in range(len(_PORTS)))
    free = (port for port in around if is_free(port))
    found = [port for port, _ in zip(free, range(count), strict=False)]
    if len(found) < count:
        raise OSError(f"no {count} free ports from {_PORTS.start} to {_PORTS.stop - 1}")
    return found


def is_free(port: int) -> bool:
    """Whether nobody listens at a port of this machine."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def listens(address: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((address, port), timeout=5.0).close()
    except OSError:
        return False
    return True


class Daemon:
    """`ray start` on this node, and all that it starts."""

    def __init__(self, command: list[str], token: Path, folder: Path) -> None:
        self._folder = folder
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", ray_guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_own_environment(os.environ) | environment(token),
            )

    @property
    def started(self) -> bool:
        """Whether the head knows this node."""
        return _STARTED in self._text()

    @property
    def ended(self) -> bool:
        """Whether it has ended, which it never should by itself."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """What it said last, in one line."""
        return last_words(self._text())

    def stop(self) -> None:
        """Ends all of it. The last lines of one that ended by itself go into our log."""
        if self.ended:
            for line in self._text().splitlines()[-30:]:
                log.error("ray: %s", line)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _text(self) -> str:
        return self._output.read_text(errors="replace")


@contextmanager
def daemon(node: RayNode, token: Path, logs: Path) -> Iterator[Daemon]:
    """Ray on this node for the time being; what it logged is kept in `logs`, bounded.

    Raises OSError.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=short_folder(tempfile.gettempdir())))
    try:
        running = Daemon(start_command(node, folder / "ray"), token, folder)
        try:
            yield running
        finally:
            running.stop()
            try:
                keep_logs(folder, logs)
            except OSError as error:
                log.warning("Ray's logs are not kept: %s", error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def short_folder(usual: str) -> str:
    """Where temporary files go, if the paths of Ray's sockets below it are short enough."""
    longest = f"{usual}/ray-12345678/ray{_SOCKET}"
    return usual if len(longest) <= _SOCKET_CHARACTERS else "/tmp"  # noqa: S108


def keep_logs(folder: Path, target: Path) -> None:
    """Copies the end of what Ray said and of each of its logs, 16 MB in all. Raises OSError."""
    found = [folder / "output", *sorted((folder / "ray" / "session_latest" / "logs").glob("*"))]
    left = _KEEP_ALL_BYTES
    for path in found:
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - min(_KEEP_BYTES, left)))
            tail = file.read()
        if tail:
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            (target / path.name).write_bytes(tail)
            left -= len(tail)


def last_words(text: str) -> str:
    """The last exception in a text, or else its last line, as one line of bounded length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [at for at, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    said = " ".join(lines[raised[-1] :] if raised else lines[-1:]) or "nothing"
    return said if len(said) <= _WORDS else f"{said[: _WORDS - 3]}..."


def _own_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """For Ray's processes, and the trials and ranks that it starts."""
    # Another cluster's, and what would bind all trials to one number of threads.
    foreign = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "OMP_NUM_THREADS"}
    return {
        **{name: value for name, value in inherited.items() if name not in foreign},
        "RAY_USAGE_STATS_ENABLED": "0",
        # It would look at the memory of the whole machine, which other jobs share.
        "RAY_memory_monitor_refresh_ms": "0",
        # It would make way for everybody else on the node; the CPUs are the job's.
        "RAY_worker_niceness": "0",
    }
