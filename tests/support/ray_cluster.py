"""A real Ray cluster of several hosts on this machine, started and stopped by the tests.

A host is one of `tests.support.machines`, so a node can be killed, cut off or added. Token
authentication is on. The dashboard, and with it the job server, answers at `server`.
"""

import json
import os
import secrets
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.machines import Machines, missing, until

#: Ray by its module: the command on PATH may be another environment's.
_RAY = f"{sys.executable} -m ray.scripts.scripts"

_DAEMON = """
$RAY start --block --disable-usage-stats --temp-dir="$TEMPORARY" --node-ip-address="$ADDRESS" \
    --num-cpus="$CPUS" --num-gpus=0 --object-store-memory=100000000 --min-worker-port=20000 \
    --max-worker-port=20999 $ROLE &
wait $!
"""

#: Of the head alone. The metrics of each node are exported at this port.
METRICS_PORT = 8100


class RayHosts(Machines):
    """A cluster of one's own, until `stop`: a `head` and workers `w1`, `w2` ..."""

    daemon = _DAEMON

    def __init__(
        self,
        folder: Path,
        *,
        head_cpus: int = 1,
        workers: Sequence[int] = (1,),
        spare: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """workers: CPUs of each. spare: names for nodes that are added later."""
        count = len(workers) + spare
        super().__init__(folder, ["head", *(f"w{number}" for number in range(1, count + 1))])
        self._cpus = {"head": head_cpus, **dict(zip(self.names[1:], workers, strict=False))}
        self._given = dict(environment or {})
        # Sockets lie below it, whose paths have at most 107 characters.
        self._temporary = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        self.token = folder / "token"

    @property
    def server(self) -> str:
        """The address of the dashboard."""
        return f"http://{self.address('head')}:8265"

    def environment(self) -> dict[str, str]:
        """Of the nodes' processes."""
        return {
            "HOME": str(self.folder / "home"),
            "RAY": _RAY,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_health_check_period_ms": "1000",  # a lost node is found in 5 s and not in 25
            "RAY_health_check_timeout_ms": "1000",
            "RAY_worker_niceness": "0",  # other tests are at work on the same CPUs
            "LANG": "C.UTF-8",
            **self._given,
        }

    def start(self) -> None:
        """Returns when all nodes are there; raises RuntimeError where that cannot be."""
        if reason := missing({}, "a Ray cluster of several hosts"):
            raise RuntimeError(reason)
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        self.token.touch(0o600)
        self.token.write_text(secrets.token_hex(32))
        try:
            self.connect()
            for name in self._cpus:
                self.add(name)
            self.await_nodes(len(self._cpus))
        except BaseException:
            self.stop()
            raise

    def add(self, name: str, cpus: int = 1, **variables: str) -> None:
        """Starts a node, which joins by itself."""
        role = f"--address={self.address('head')}:6379"
        if name == "head":
            role = f"--head --port=6379 --dashboard-host={self.address('head')}"
        self.start_node(
            name,
            CPUS=str(self._cpus.setdefault(name, cpus)),
            TEMPORARY=str(self._temporary / name),
            ROLE=f"{role} --metrics-export-port={METRICS_PORT}",
            **variables,
        )

    def stop(self) -> None:
        """Ends all nodes; their temporary files go as well."""
        super().stop()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def await_nodes(self, count: int, seconds: float = 120.0) -> None:
        """Returns when so many nodes are alive in the eyes of Ray."""
        until(lambda: self.alive() == count, f"{count} nodes, see {self.folder}", seconds)

    def alive(self) -> int:
        """How many nodes are alive in the eyes of Ray."""
        try:
            nodes = self.ask("/api/v0/nodes")["data"]["result"]["result"]
        except OSError:
            return 0
        return sum(node["state"] == "ALIVE" for node in nodes)

    def ask(self, path: str) -> dict[str, Any]:
        """What the dashboard answers."""
        request = urllib.request.Request(
            f"{self.server}{path}",
            headers={"Authorization": f"Bearer {self.token.read_text()}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            body: dict[str, Any] = json.load(answer)
            return body

    def ray(self, node: str, *arguments: str) -> list[str]:
        """A command of Ray's, to be run on a node."""
        enter = ["nsenter", f"--net=/proc/{self._inside(node)}/ns/net"]
        return [*enter, *_RAY.split(), *arguments]

    def variables(self) -> dict[str, str]:
        """With which a command of Ray's finds the cluster."""
        return {**os.environ, **self.environment(), "RAY_ADDRESS": f"{self.address('head')}:6379"}

    def _inside(self, node: str) -> int:
        return self.pids(node)[0]
