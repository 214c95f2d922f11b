"""On each node of a cluster: what it sees of itself and of the others, said line by line.

It is started from its text, by `report.boot` and `report.sources`, and needs nothing but the
standard library of any Python since 3.9: a node that lacks this very package can still say so. What
may hang or needs more runs beside it (`machine`, `storing`, `compute`), in processes that are given
up after their time. Everything is said at once when it is known.

Standard input: a line with the texts, a line with all nodes' names and addresses (`report.places`).
Standard output: what `report.Collector` reads. The nodes meet at the ports that they are told, each
of which every node listens on; node 0 makes them wait for each other.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import glob
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: Begins each line that is for the client.
MARK = "IGPT-DOCTOR"
#: Characters of one line: what relays lines on the way, as srun does, leaves short ones whole.
_PIECE = 600

# Seconds. A node that starts late is waited for; a packet that is dropped is soon given up.
_MACHINE = 30.0
_STORE = 90.0
_TORCH = 100.0
_REDUCE = 45.0
_IMPORTS = 60.0
_MEETING = 40.0
_AGAIN = 5.0  # where they have not met
_PROBE = 3.0
_WHOLE = 240.0

_LONGEST = 1 << 20  # bytes that one node says to another
_MOST_PEERS = 16  # whose ports are tried

Facts = dict[str, Any]


def main(options: argparse.Namespace, sources: dict[str, str]) -> None:
    """Examines this node and, where it is one of several, meets the others."""
    speaker = Speaker(options.rank)
    whole = threading.Timer(_WHOLE, _leave)
    whole.daemon = True
    whole.start()
    try:
        _examine(speaker, options, sources)
    except Exception as error:  # the client is told, and prints no traceback
        speaker.say(error=f"{type(error).__name__}: {error}")
        traceback.print_exc()


def _examine(speaker: Speaker, options: argparse.Namespace, sources: dict[str, str]) -> None:
    speaker.say(clock=time.time(), hello=_hello(options))
    machine = Child(sources["machine"], options.folder or "")
    who = "client" if options.client else str(options.rank)
    store = Child(sources["storing"], options.store, options.token, who)
    compute = None if options.client else Child(sources["compute"])
    for name in ("packages", "code", "disks"):
        speaker.say(**{name: machine.answer(name, _MACHINE)})
    if compute is not None:
        places = json.loads(sys.stdin.readline())
        _among_others(speaker, options, places, machine, compute)
    speaker.say(store=store.answer("store", _STORE))
    if compute is not None:
        speaker.say(imports=compute.answer("imports", _IMPORTS))
    speaker.say(clock=time.time(), end=True)


def _among_others(
    speaker: Speaker, options: argparse.Namespace, places: Facts, machine: Child, compute: Child
) -> None:
    """Names, ports, accelerators, and a sum over all nodes."""
    meeting = Meeting(options.rank, places["addresses"], places["ports"], options.token)
    machine.ask(places)
    met = meeting.wait("met", {}, _MEETING)
    again = _TORCH if met else _AGAIN
    speaker.say(ports=meeting.probe())
    speaker.say(names=machine.answer("names", _MACHINE))
    meeting.wait("probed", {}, min(again, _MACHINE))
    devices = compute.answer("devices", _TORCH)
    speaker.say(devices=devices)
    mine = {"ready": "error" not in devices, "gpus": len(devices.get("names", []))}
    ready = meeting.wait("ready", {**mine, "port": _free_port()}, again)
    missing = [name for rank, name in enumerate(places["names"]) if rank not in ready]
    unready = [places["names"][rank] for rank in sorted(ready) if not ready[rank]["ready"]]
    if missing or unready:
        speaker.say(reduce={"skipped": {"missing": missing, "unready": unready}})
        compute.ask({})
        return
    having = sorted(rank for rank, one in ready.items() if one["gpus"])
    compute.ask(
        {
            "rank": options.rank,
            "world": len(places["names"]),
            "address": places["addresses"][0],
            "port": ready[0]["port"],
            "interface": options.interface,
            "sums": [("gloo", sorted(ready)), *([("nccl", having)] if having else [])],
        }
    )
    speaker.say(reduce=compute.answer("reduce", _REDUCE))


class Speaker:
    """Says facts, in pieces, one whole line at a time."""

    def __init__(self, rank: int) -> None:
        self._rank, self._number = rank, 0

    def say(self, **facts: Any) -> None:
        """Facts by name: the client keeps the last of each name."""
        text = json.dumps(facts)
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        self._number += 1
        for index, piece in enumerate(pieces):
            head = f"{MARK} {self._rank} {self._number} {index + 1}/{len(pieces)}"
            print(f"{head} {piece}", flush=True)  # noqa: T201


class Meeting:
    """Listens on the ports, tries the others', and has all nodes wait for each other at node 0."""

    def __init__(
        self, rank: int, addresses: list[str | None], ports: list[int], token: str
    ) -> None:
        self._rank, self._addresses, self._ports, self._token = rank, addresses, ports, token
        self._count = sum(address is not None for address in addresses)  # that have said anything
        self._waiting: dict[str, dict[int, tuple[Any, socket.socket]]] = {}
        self._lock = threading.Lock()
        self._busy: list[int] = []
        for port in ports:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", port))
                listener.listen(256)
            except OSError:
                self._busy.append(port)
                listener.close()
            else:
                threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def wait(self, name: str, payload: Facts, seconds: float) -> dict[int, Any]:
        """Returns when every node that is there has called it: what they gave, by rank.

        After so many seconds, or where node 0 cannot be reached, without any.
        """
        deadline = time.monotonic() + seconds
        message = {"wait": name, "rank": self._rank, "payload": payload}
        while time.monotonic() < deadline:
            for port in self._ports:
                left = deadline - time.monotonic()
                try:
                    answer = self._call(0, port, message, min(_PROBE, left), left)
                except OSError:
                    continue
                return {int(rank): given for rank, given in answer["all"].items()}
            time.sleep(0.2)
        return {}

    def probe(self) -> Facts:
        """Which ports were taken here, and which of the other nodes' cannot be reached, and why."""
        count = len(self._addresses)
        # The next ones round the ring, so that every node of a large cluster is tried by as many.
        ring = [(self._rank + step) % count for step in range(1, count)]
        peers = sorted({*ring[:_MOST_PEERS], *(peer for peer in ring if peer == 0)})
        pairs = [(peer, port) for peer in peers if self._addresses[peer] for port in self._ports]
        with ThreadPoolExecutor(max_workers=max(1, len(pairs))) as pool:
            problems = list(pool.map(self._problem, pairs))
        closed: dict[int, dict[int, str]] = {}
        for (peer, port), problem in zip(pairs, problems):  # noqa: B905 for old Pythons
            if problem is not None:
                closed.setdefault(peer, {})[port] = problem
        return {"tried": self._ports, "busy": self._busy, "closed": closed}

    def _problem(self, pair: tuple[int, int]) -> str | None:
        try:
            self._call(*pair, {"probe": True}, _PROBE, _PROBE)
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _call(
        self, peer: int, port: int, message: Facts, connecting: float, answering: float
    ) -> Facts:
        address = (str(self._addresses[peer]), port)
        with socket.create_connection(address, timeout=max(0.1, connecting)) as connection:
            connection.settimeout(max(0.1, answering))
            connection.sendall(json.dumps({**message, "token": self._token}).encode() + b"\n")
            line = connection.makefile("rb").readline(_LONGEST)
        answer = json.loads(line) if line.startswith(b"{") and line.endswith(b"}\n") else {}
        if answer.get("token") != self._token:
            raise OSError(errno.EADDRINUSE, "another program listens there")
        return dict(answer)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_WHOLE)
        try:
            message = json.loads(connection.makefile("rb").readline(_LONGEST))
        except (OSError, ValueError):  # not one of us
            connection.close()
            return
        if message.get("token") != self._token:
            connection.close()
        elif "wait" not in message:
            self._send(connection, {})
        else:
            self._hold(connection, message)

    def _hold(self, connection: socket.socket, message: Facts) -> None:
        """Answers everybody when the last has come."""
        with self._lock:
            waiting = self._waiting.setdefault(message["wait"], {})
            waiting[int(message["rank"])] = (message["payload"], connection)
            complete = len(waiting) == self._count
        if complete:
            given = {rank: payload for rank, (payload, _) in waiting.items()}
            for _, waiter in waiting.values():
                self._send(waiter, {"all": given})

    def _send(self, connection: socket.socket, answer: Facts) -> None:
        with contextlib.suppress(OSError):  # whoever asked has given up, and says so itself
            connection.sendall(json.dumps({**answer, "token": self._token}).encode() + b"\n")
        connection.close()


class Child:
    """A Python process of this node that answers with facts, and cannot block it."""

    def __init__(self, text: str, *arguments: str) -> None:
        self._answers: Facts = {}
        self._changed = threading.Condition()
        self._tail: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", text, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
        _CHILDREN.append(self._process)
        threading.Thread(target=self._read, daemon=True).start()

    def answer(self, name: str, seconds: float) -> Facts:
        """What it says under this name; `{"error": ...}` where it does not.

        With `"late": True` where it may yet.
        """
        with self._changed:
            self._changed.wait_for(lambda: {name, "ended"} & self._answers.keys(), seconds)
            if name in self._answers:
                return dict(self._answers[name])
            busy = f" at: {self._answers['at']}" if "at" in self._answers else ""
            if "ended" in self._answers:
                last = self._tail[-1] if self._tail else "it said nothing"
                return {"error": f"the process ended ({self._answers['ended']}){busy}: {last}"}
            return {"error": f"no answer within {seconds:.0f} s{busy}", "late": True}

    def ask(self, message: Facts) -> None:
        """A line to its standard input."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, which `answer` says
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                with self._changed:
                    self._answers.update(json.loads(line))
                    self._changed.notify_all()
            elif line.strip():
                self._tail = [*self._tail[-20:], line.strip()[:300]]
        with self._changed:
            self._answers["ended"] = self._process.wait()
            self._changed.notify_all()


_CHILDREN: list[subprocess.Popen[str]] = []


def _leave() -> None:
    """Ends this process and those beside it, whatever hangs in them."""
    for child in _CHILDREN:
        child.kill()
    os._exit(0)


def _hello(options: argparse.Namespace) -> Facts:
    address = options.address
    if address is None and options.interface is not None:
        address = _address_of(options.interface)
    return {
        "name": options.name or socket.gethostname(),
        "address": address or _address_towards(options.towards),
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "cards": len(glob.glob("/dev/nvidia[0-9]*")),  # whatever torch makes of them
    }


def _address_towards(other: str | None) -> str | None:
    """Our address on the way to another one: as who starts us, and so the other nodes, see us."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((other or "127.0.0.1", 9))  # sends nothing: it only asks for the route
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _address_of(interface: str) -> str | None:
    """Linux's answer to SIOCGIFADDR."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(probe.fileno(), 0x8915, request)
        except OSError:  # there is none of this name, or it has no address
            return None
    return socket.inet_ntoa(answer[20:24])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; `report.arguments` writes them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True, help="this node's number")
    parser.add_argument("--name", help="as the cluster calls it; default: its host name")
    parser.add_argument("--address", help="as the others reach it; default: see --towards")
    parser.add_argument("--towards", help="an address; ours on the way there is what others use")
    parser.add_argument("--store", required=True)
    parser.add_argument("--token", required=True, help="of this examination")
    parser.add_argument("--folder", help="that all nodes share")
    parser.add_argument("--interface", help="the network between nodes")
    parser.add_argument("--client", action="store_true", help="no node, but whoever submits")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(parse(sys.argv[1:]), SOURCES)  # type: ignore[name-defined]  # noqa: F821
    finally:
        _leave()
