"""One Slurm cluster for all processes of a test session.

The first to come starts a keeper, which starts the cluster. Each user holds a connection to it; the
kernel closes it with the user, so nobody can forget to leave. With the last user the keeper stops
the cluster, and only then lets that user go.
"""

import fcntl
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from tests.support.machines import Node
from tests.support.slurm import Slurm
from tests.support.slurm_cluster import SlurmCluster

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 120.0


@contextmanager
def shared_slurm(folder: Path, *, nodes: int, cpus: int) -> Iterator[Slurm]:
    """The cluster of all who name this folder; raises RuntimeError where it does not start."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gate").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        joined = _join(folder) or _start(folder, nodes, cpus)
    connection, slurm = joined
    with connection:
        yield slurm
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


def _join(folder: Path) -> tuple[socket.socket, Slurm] | None:
    """A connection to the keeper and what it says of the cluster; None where there is no keeper."""
    connection = socket.socket(socket.AF_UNIX)
    with suppress(OSError):
        connection.connect(str(folder / "keeper"))
        with connection.makefile() as lines:
            if welcome := lines.readline():
                fields = json.loads(welcome)
                nodes = {name: Node(**node) for name, node in fields["nodes"].items()}
                return connection, Slurm(Path(fields["folder"]), fields["gateway"], nodes)
    connection.close()
    return None


def _start(folder: Path, nodes: int, cpus: int) -> tuple[socket.socket, Slurm]:
    log = folder / "keeper.log"
    keeper = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", __name__, str(folder), str(nodes), str(cpus)],
        {**os.environ, "PYTHONPATH": str(_ROOT)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if joined := _join(folder):
            return joined
        if os.waitpid(keeper, os.WNOHANG) != (0, 0):
            break
        time.sleep(0.1)
    raise RuntimeError(f"the shared cluster did not start: {log.read_text()[-2000:]}")


def _keep(folder: Path, nodes: int, cpus: int) -> None:
    """Runs the cluster from the first user to the last."""
    door = folder / "keeper"
    door.unlink(missing_ok=True)
    cluster = SlurmCluster(folder / str(os.getpid()), nodes=nodes, cpus=cpus)
    cluster.start()
    try:
        welcome = {
            "folder": str(cluster.folder),
            "gateway": cluster.gateway,
            "nodes": {name: asdict(node) for name, node in cluster.nodes.items()},
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(door))
            listener.listen(64)
            last = _serve(listener, json.dumps(welcome).encode() + b"\n")
            door.unlink()
    finally:
        cluster.stop()
    if last is not None:
        last.close()


def _serve(listener: socket.socket, welcome: bytes) -> socket.socket | None:
    """Returns with the connection of the last user; with None where no user came at all."""
    users: list[socket.socket] = []
    while True:
        ready, _, _ = select.select([listener, *users], [], [], None if users else _START_SECONDS)
        if not ready:
            return None
        for one in ready:
            if one is listener:
                users.append(listener.accept()[0])
                with suppress(OSError):  # it has left already, which the next turn finds
                    users[-1].sendall(welcome)
                continue
            users.remove(one)
            if not users:
                return one
            one.close()


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
