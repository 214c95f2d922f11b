"""What every way of reaching the nodes has in common, and the two that stay on this machine.

A gatherer takes the cluster, the errand, how long it may wait for the nodes, and `say` for people;
it returns what the nodes said, and leaves nothing running, also when it is interrupted.
"""

import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import igpt
from igpt.clusters.base import ClusterConfig
from igpt.clusters.doctor.finding import Finding
from igpt.clusters.doctor.report import (
    Collector,
    Errand,
    Report,
    arguments,
    boot,
    environment,
    places,
    sources,
)
from igpt.errors import IgptError
from igpt.runs import snapshot
from igpt.storage import open_store
from igpt.storage.cache import cache_directory

#: From the first word of the nodes to the last: more than their own deadlines come to.
NODE_SECONDS = 270.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Gathered:
    """What a gatherer brings home."""

    reports: Sequence[Report]
    nodes: int  # that were asked for
    code: Path | None = None  # where nodes are to have this package from; None: as installed there
    trouble: str = ""  # why there are not as many reports as nodes
    mend: str = ""
    findings: Sequence[Finding] = ()  # the gatherer's own
    idle: frozenset[str] = frozenset()  # nodes on which no worker of a run would be


Gatherer = Callable[[ClusterConfig, Errand, float, Say], Gathered]


class Conversation:
    """A command that is told lines, and says lines."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def tell(self, text: str) -> None:
        """Whole lines to its standard input, unless it has ended."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(text)
            self.process.stdin.flush()

    def hear(self, seconds: float) -> str | None:
        """Its next line; empty where none comes in so many seconds, None after the last."""
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)


@contextmanager
def conversation(command: Sequence[str], variables: dict[str, str]) -> Iterator[Conversation]:
    """Starts the command in a session of its own; in the end nothing of it is left here."""
    process = subprocess.Popen(
        command,
        env=variables,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield Conversation(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with suppress(BrokenPipeError):
            process.__exit__(None, None, None)


def gather_here(cluster: ClusterConfig, errand: Errand, wait: float, say: Say) -> Gathered:
    """The one node of a local cluster."""
    say("examining this machine ...")
    code, findings = placed_code(cache_directory() / "code")
    name, address = platform.node(), "127.0.0.1"
    collector = _examine_here(
        errand, code, {"rank": "0", "name": name, "address": address}, [(name, address)]
    )
    return Gathered(
        collector.reports(), 1, code, trouble="; ".join(collector.other[-5:]), findings=findings
    )


def client_report(errand: Errand) -> Report | None:
    """What this machine sees that submits and computes nothing; None where it says nothing."""
    above = Path(igpt.__file__).parents[1]
    # Where it is installed it is found, and must not hide the standard library.
    installed = any(above.glob("igpt_jobs-*.dist-info"))
    code = None if installed else above
    reports = _examine_here(errand, code, {"rank": "-1", "name": "client"}, None).reports()
    return reports[0] if reports else None


def placed_code(folder: Path) -> tuple[Path | None, list[Finding]]:
    """Puts the code there as a submission does: where it is, and what went wrong.

    None where it comes from a wheel, which nodes have to have themselves.
    """
    taken, files = snapshot.take(Path(igpt.__file__).parent)
    if taken.digest is None:
        return None, []
    try:
        with tempfile.TemporaryDirectory() as scratch:
            root = open_store(scratch)
            snapshot.publish(root, taken, files)
            return snapshot.unpack(root, taken.digest, folder), []
    except (IgptError, OSError) as error:
        what, mend = (error.what, error.mend) if isinstance(error, IgptError) else (str(error), "")
        return None, [Finding("code", "fail", "client", f"cannot be unpacked: {what}", mend)]


def with_code(variables: dict[str, str], code: Path | None) -> dict[str, str]:
    """The variables, with the code first on PYTHONPATH."""
    if code is None:
        return variables
    inherited = variables.get("PYTHONPATH")
    joined = f"{code}{os.pathsep}{inherited}" if inherited else str(code)
    return {**variables, "PYTHONPATH": joined}


def _examine_here(
    errand: Errand,
    code: Path | None,
    options: dict[str, str],
    nodes: Sequence[tuple[str, str]] | None,
) -> Collector:
    """Examines this machine: as a node among these, or as the client."""
    client = [] if nodes else ["--client"]
    command = [sys.executable, *boot(), *arguments(errand, **options), *client]
    collector = Collector()
    deadline = time.monotonic() + NODE_SECONDS
    with conversation(command, with_code(environment(), code)) as talk:
        talk.tell(sources())
        if nodes:
            talk.tell(places(nodes, errand.ports))
        while time.monotonic() < deadline:
            line = talk.hear(1.0)
            if line is None:
                break
            collector.feed(line)
    return collector
