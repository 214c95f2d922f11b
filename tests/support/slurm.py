"""A Slurm cluster as its users see it: its commands, its queue, its nodes and their processes."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Where the daemons are, also for a user whose own path lacks the administrator's folders.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The namespaces of a machine of its own: mounts, host name, network and processes.
MACHINE = ("unshare", "--mount-proc", "--uts", "--net", "--pid", "--kill-child")
_PACKAGES = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "munged": "munge",
    "ip": "iproute2",
    "unshare": "util-linux",
}
_ACCOUNTING_PACKAGES = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}
_VARIABLES = ("SLURM", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SACCT", "SCANCEL", "SINFO")


def missing(*, accounting: bool = False) -> str | None:
    """What this machine lacks for a cluster, and how to get it; None where nothing is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a real Slurm for the tests needs Linux and root"
    needed = _PACKAGES | (_ACCOUNTING_PACKAGES if accounting else {})
    absent = [command for command in needed if shutil.which(command, path=PATH) is None]
    if absent:
        packages = " ".join(sorted({needed[command] for command in absent}))
        return (
            f"there is no {', '.join(absent)}: apt-get install --no-install-recommends {packages}"
        )
    trial = subprocess.run([*MACHINE, "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        return (
            "namespaces are not permitted here (in a container: run it privileged): "
            f"{trial.stderr.strip()}"
        )
    return None


@dataclass(frozen=True)
class Node:
    """A node as seen from the machine of the tests."""

    name: str
    address: str
    namespace: int  # the number of its process namespace


class Slurm:
    """A running cluster."""

    def __init__(self, folder: Path, gateway: str, nodes: dict[str, Node]) -> None:
        self.folder = folder
        self.gateway = gateway  # where the nodes reach the machine that the tests run on
        self.nodes = nodes

    def environment(self) -> dict[str, str]:
        """The variables with which Slurm's commands find the cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command to its end, whatever that is, and keeps its output."""
        inherited = {k: v for k, v in os.environ.items() if k not in slurm_variables()}
        return subprocess.run(
            command,
            env=inherited | self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def output(self, *command: str) -> str:
        """What a command prints, stripped; fails where the command does."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command} exited with {done.returncode}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *options: str) -> int:
        """Submits the text of a shell script and returns the job's number."""
        path = self.folder / "scripts" / f"{secrets.token_hex(4)}.sh"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        return int(self.output("sbatch", "--parsable", *options, str(path)))

    def squeue(self, *arguments: str) -> str:
        """The queue without its heading."""
        return self.output("squeue", "--noheader", *arguments)

    def job(self, number: int | str) -> dict[str, str]:
        """What `scontrol show job` says of a job: JobState, Reason, Restarts, ExitCode ..."""
        return _fields(self.output("scontrol", "--oneliner", "show", "job", str(number)))

    def node_state(self, name: str) -> str:
        """A node's state as Slurm sees it, such as IDLE, MIXED or DOWN+NOT_RESPONDING."""
        return _fields(self.output("scontrol", "--oneliner", "show", "node", name))["State"]

    def cancel_all(self) -> None:
        """Cancels every job of every user of this cluster."""
        self.output("scancel", "--user", "root")

    def wait_idle(self, seconds: float = 60.0) -> None:
        """Returns when there is no job left and every node is idle."""
        until(lambda: not self.squeue() and self.idle(), "an idle cluster", seconds)

    def idle(self) -> bool:
        """Whether every node is up and free."""
        states = self.run("sinfo", "--noheader", "--Node", "--format", "%T").stdout.split()
        return set(states) == {"idle"}

    def pids(self, node: str, command: str = "") -> list[int]:
        """A node's processes whose command line has `command`, as numbered outside of the node."""
        return [
            int(entry.name)
            for entry in os.scandir("/proc")
            if entry.name.isdigit()
            and process_namespace(int(entry.name)) == self.nodes[node].namespace
            and command in _command_line(int(entry.name))
        ]


def slurm_variables() -> list[str]:
    """The variables in this process's environment that Slurm's commands would read."""
    return [name for name in os.environ if name.startswith(_VARIABLES)]


def until(
    condition: Callable[[], object],
    what: str,
    seconds: float = 60.0,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Waits for something that must come; fails with `what`, or earlier as `check` does."""
    deadline = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


def process_namespace(pid: int, kind: str = "pid") -> int | None:
    """The number of a process's namespace; None where it is gone or not ours to see."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    return None


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")
    return ""


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)
