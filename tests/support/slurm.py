"""A Slurm cluster as its users see it: its commands, its queue, its nodes and their processes."""

import os
import secrets
import subprocess
from pathlib import Path

from tests.support import machines
from tests.support.machines import Node, until

_PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
_ACCOUNTING_PACKAGES = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}
_VARIABLES = ("SLURM", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SACCT", "SCANCEL", "SINFO")


def missing(*, accounting: bool = False) -> str | None:
    """What this machine lacks for a cluster, and how to get it; None where nothing is missing."""
    needed = _PACKAGES | (_ACCOUNTING_PACKAGES if accounting else {})
    return machines.missing(needed, "a real Slurm")


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
        return machines.pids_in(self.nodes[node].namespace, command)


def slurm_variables() -> list[str]:
    """The variables in this process's environment that Slurm's commands would read."""
    return [name for name in os.environ if name.startswith(_VARIABLES)]


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)
