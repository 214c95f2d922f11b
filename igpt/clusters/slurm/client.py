"""Slurm's commands, and what they answer: text of fixed columns, as that changes least.

Each may be missing or fail: the controller restarts, accounting is off on many sites. What cannot
be learned is None, never a guess.
"""

import getpass
import shutil
import subprocess
import time
from dataclasses import dataclass

from igpt.errors import Unreachable, UserError

_SECONDS = 60.0  # a busy controller answers slowly
_FRESH_SECONDS = 1.0

#: What sbatch says when it never reached a controller, or has no answer from it.
_AWAY = (
    "unable to contact slurm controller",
    "connection refused",
    "connection timed out",
    "socket timed out",
    "transport endpoint",
    "communication connection failure",
    "address resolution failure",
    "slurm temporarily unable",
    "authentication",
)


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm knows, in its own words."""

    job: str
    state: str  # PENDING, RUNNING, ...
    reason: str
    name: str
    folder: str  # its working directory

    @property
    def waiting(self) -> bool:
        """Whether it has not started, or not started again."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def described(self) -> str:
        """State and reason for people."""
        why = "" if self.reason in ("None", "") else f" ({self.reason})"
        return f"Slurm job {self.job} is {self.state}{why}"


class Slurm:
    """The commands, with one look at the queue for all runs that ask within a second."""

    def __init__(self) -> None:
        self._queue: dict[str, QueuedJob] | None = None
        self._asked = float("-inf")

    def queue(self) -> dict[str, QueuedJob] | None:
        """The user's jobs by id; None where Slurm cannot be asked."""
        if time.monotonic() - self._asked > _FRESH_SECONDS:
            answer = ask("squeue", "--noheader", f"--user={getpass.getuser()}", f"-o{_COLUMNS}")
            self._queue = None if answer is None else parse_queue(answer)
            self._asked = time.monotonic()
        return self._queue

    def forget(self) -> None:
        """Makes the next look a new one."""
        self._asked = float("-inf")

    def ended(self, job: str) -> str | None:
        """What became of a job that the queue no longer shows; None where nobody remembers."""
        answer = ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode")
        if answer and answer.strip():
            state, _, code = answer.strip().splitlines()[-1].partition("|")
            return f"Slurm job {job} ended as {state}, exit code {code}"
        answer = ask("scontrol", "show", "job", job, "--oneliner")
        if answer:
            fields = parse_fields(answer)
            state, code = fields.get("JobState", "?"), fields.get("ExitCode", "?")
            return f"Slurm job {job} ended as {state}, exit code {code}"
        return None

    def find(self, name: str, folder: str) -> QueuedJob | None:
        """The user's newest job of this name and working directory."""
        jobs = [
            job for job in (self.queue() or {}).values() if (job.name, job.folder) == (name, folder)
        ]
        return max(jobs, key=lambda job: int(job.job), default=None)


_COLUMNS = "%i|%T|%r|%j|%Z"


def parse_queue(text: str) -> dict[str, QueuedJob]:
    """The answer of `squeue -o` with our columns."""
    found = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 4)
        if len(parts) == 5:
            found[parts[0]] = QueuedJob(*parts)
    return found


def parse_fields(text: str) -> dict[str, str]:
    """`Key=value` pairs of `scontrol --oneliner`."""
    pairs = (word.partition("=") for word in text.split())
    return {key: value for key, equals, value in pairs if equals}


def ask(*command: str) -> str | None:
    """What a command prints; None where it is missing, fails or does not answer."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def tell(*command: str) -> str | None:
    """Runs a command that changes something; returns what went wrong, if it did."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if answer.returncode == 0 else (answer.stderr.strip() or answer.stdout.strip())


def check_login_node() -> None:
    """Raises UserError where this machine cannot submit."""
    missing = [name for name in ("sbatch", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"this machine has no {', '.join(missing)}",
            expected="Slurm's commands, as on the cluster's login node",
            mend="Submit from a login node, or `module load slurm` first",
        )


def rejected(words: str) -> UserError | Unreachable:
    """The error for a submission that sbatch refused, by its own words."""
    said = " ".join(words.split()).removeprefix("sbatch: ")
    if any(away in said.lower() for away in _AWAY):
        return Unreachable(
            f"Slurm cannot be reached: {said}", mend="`scontrol ping` shows whether it is back"
        )
    return UserError(
        f"Slurm refused the job: {said}",
        expected="partition, account, qos, time and sizes that this cluster grants",
        mend="Change the cluster file; `sinfo -o '%P %l %D %c %m %G'` shows what there is",
    )
