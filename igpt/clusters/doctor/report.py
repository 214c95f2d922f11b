"""How the examination of a node is started, and what is read of its output.

    command(python, options) + [...]   a command, for any way of starting processes
    sources()                          the first line of its standard input
    places(nodes, ports)               the second: who and where all nodes are
    Collector                          reads its output, of any number of nodes, line by line

Nothing goes by the store, so that a node that cannot reach it is heard all the same.
"""

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from igpt.clusters.doctor.node import MARK

#: Reads the first line of standard input, and runs what it holds.
_BOOT = (
    "import json, sys; "
    "sys.version_info < (3, 9) and sys.exit('This Python is too old: ' + sys.version.split()[0]); "
    "sources = json.loads(sys.stdin.readline()); "
    'exec(compile(sources["node"], "doctor", "exec"), '
    '{"__name__": "__main__", "SOURCES": sources})'
)
_TEXTS = ("node", "machine", "storing", "compute")
_PORTS = 8


@dataclass(frozen=True)
class Errand:
    """What every node of one examination is told."""

    token: str  # of this examination
    store: str
    ports: tuple[int, ...]  # that every node listens on, and tries
    folder: str | None = None  # that all nodes share
    interface: str | None = None  # the network between nodes; None: whichever leads there


@dataclass(frozen=True)
class Report:
    """What one node said: facts by name, as `node` makes them."""

    rank: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    ahead: float | None = None  # seconds that its clock is ahead of the client's

    @property
    def name(self) -> str:
        """As the cluster calls it."""
        return str(self.facts.get("hello", {}).get("name", f"node {self.rank}"))

    def fact(self, name: str) -> dict[str, Any]:
        """What it said under a name; `{"error": ...}` where it did not."""
        return dict(self.facts.get(name, {"error": "no answer"}))


def arguments(errand: Errand, **given: str) -> list[str]:
    """The options of a node. given: `name`, `address` or `towards`, where they are known."""
    options = {"store": errand.store, "token": errand.token, **given}
    if errand.folder is not None:
        options["folder"] = errand.folder
    if errand.interface is not None:
        options["interface"] = errand.interface
    return [f"--{name}={value}" for name, value in options.items()]


def boot() -> list[str]:
    """What follows the name of Python, before the options."""
    return ["-u", "-c", _BOOT]


def sources() -> str:
    """The first line of a node's standard input: the texts that it runs."""
    here = Path(__file__).parent
    texts = {name: (here / f"{name}.py").read_text() for name in _TEXTS}
    return json.dumps(texts) + "\n"


def places(nodes: Sequence[tuple[str | None, str | None]], ports: Sequence[int]) -> str:
    """The second line: name and address of every node, by rank; None for one that is silent."""
    names, addresses = [name for name, _ in nodes], [address for _, address in nodes]
    return json.dumps({"names": names, "addresses": addresses, "ports": list(ports)}) + "\n"


def some_ports() -> tuple[int, ...]:
    """A port at random in each of equal parts of the range that systems take ports from.

    PyTorch, gloo, NCCL and Ray let the system choose, so all of the range has to be open.
    """
    low, high = _port_range()
    part = (high - low) // _PORTS
    return tuple(low + part * one + random.randrange(part) for one in range(_PORTS))


def _port_range() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:  # not Linux, whose default this is
        return 32768, 60999
    return int(low), int(high)


def environment() -> dict[str, str]:
    """Ours, in which `-c` does not put the working directory before PYTHONPATH."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


class Collector:
    """Puts together what nodes say, whose lines come in any mixture."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, int], list[str | None]] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        self._ahead: dict[int, float] = {}
        self.other: list[str] = []  # the last lines that are not for us

    def feed(self, line: str, now: float | None = None) -> None:
        """One line of output; now: when it came, seconds since the epoch."""
        start = line.find(f"{MARK} ")
        if start < 0:
            if line.strip():
                self.other = [*self.other[-50:], line.strip()]
            return
        _, rank, number, place, piece = line[start:].rstrip("\n").split(" ", 4)
        index, count = (int(part) for part in place.split("/"))
        pieces = self._pieces.setdefault((int(rank), int(number)), [None] * count)
        pieces[index - 1] = piece
        whole = [one for one in pieces if one is not None]
        if len(whole) == count:
            del self._pieces[int(rank), int(number)]
            self._note(int(rank), json.loads("".join(whole)), time.time() if now is None else now)

    def _note(self, rank: int, facts: dict[str, Any], now: float) -> None:
        if "clock" in facts:
            # It came later than it was said, so the greatest difference is the closest.
            ahead = facts["clock"] - now
            self._ahead[rank] = max(ahead, self._ahead.get(rank, ahead))
        self._facts.setdefault(rank, {}).update(facts)

    def reports(self) -> list[Report]:
        """What each node has said so far, by rank."""
        return [Report(rank, self._facts[rank], self._ahead.get(rank)) for rank in self.ranks()]

    def ranks(self) -> list[int]:
        """The nodes that have said anything."""
        return sorted(self._facts)

    def ended(self) -> int:
        """How many nodes have said all."""
        return sum("end" in facts or "error" in facts for facts in self._facts.values())
