"""Slurm's commands, and what they answer: text of fixed columns, as that changes least.

Each may be missing or fail: the controller restarts, accounting is off on many sites. What cannot
be learned is None, never a guess.
"""

import getpass
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass

from igpt.clusters.slurm.config import seconds_of
from igpt.errors import Unreachable, UserError

_SECONDS = 60.0  # a busy controller answers slowly
_LOOK_SECONDS = 15.0  # but who only looks does not wait for it
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
    "could not establish a configuration source",
    "zero bytes were transmitted or received",
    "message receive failure",
    "message send failure",
    "standby mode",
)


_WAITING = frozenset(
    (
        *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"),
        *("SPECIAL_EXIT", "RESIZING"),
    )
)


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm knows, in its own words."""

    job: str
    state: str  # PENDING, RUNNING, ...
    ran: str  # since it last started, as 1-02:03:04, 2:03:04 or 3:04
    reason: str
    name: str
    folder: str  # its working directory

    @property
    def waiting(self) -> bool:
        """Whether it has not started, or not started again."""
        return self.state in _WAITING

    @property
    def idle(self) -> bool:
        """Whether nothing of it runs now, so that no sign of life can come."""
        return self.waiting or self.state in ("SUSPENDED", "STOPPED", "COMPLETING", "STAGE_OUT")

    @property
    def running_seconds(self) -> float | None:
        """How long it has run since it last started; None where it does not, or nobody knows."""
        try:
            return float(seconds_of(self.ran)) if self.state == "RUNNING" else None
        except ValueError:
            return None

    @property
    def described(self) -> str:
        """State and reason for people."""
        why = "" if self.reason in ("None", "") else f" ({self.reason})"
        return f"Slurm job {self.job} is {self.state}{why}"


@dataclass(frozen=True)
class KnownJob:
    """What Slurm remembers of a job, whoever's it is and whether or not it has ended."""

    state: str
    code: str
    name: str

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.state.split()[0] in _FINAL


class Slurm:
    """The commands, with one look at the queue for all runs that ask within a second."""

    def __init__(self) -> None:
        self._queue: dict[str, QueuedJob] | None = None
        self._asked = float("-inf")
        self._took = 0.0
        self._name: str | None = None
        self._over: dict[str, KnownJob] = {}  # of jobs that have ended, nothing changes any more
        self._lock = threading.Lock()

    def queue(self) -> dict[str, QueuedJob] | None:
        """The user's jobs by id; None where Slurm cannot be asked."""
        with self._lock:
            # A slow controller is not asked more often than it can answer.
            if time.monotonic() - self._asked > max(_FRESH_SECONDS, 3 * self._took):
                begun = time.monotonic()
                answer = ask("squeue", "--noheader", f"--user={getpass.getuser()}", f"-o{_COLUMNS}")
                self._queue = None if answer is None else parse_queue(answer)
                self._asked = time.monotonic()
                self._took = self._asked - begun
            return self._queue

    def cluster_name(self) -> str | None:
        """The name of the cluster that we ask; None where it does not answer."""
        if self._name is None:
            for line in (ask("scontrol", "show", "config") or "").splitlines():
                key, _, value = line.partition("=")
                if key.strip() == "ClusterName":
                    self._name = value.strip()
        return self._name

    def forget(self) -> None:
        """Makes the next look a new one."""
        self._asked = float("-inf")

    def known(self, job: str) -> KnownJob | None:
        """What became of a job that the user's queue does not show; None where nobody remembers."""
        if job in self._over:
            return self._over[job]
        found = _from_accounts(job) or _from_controller(job)
        if found is not None and found.over:
            self._over[job] = found
        return found

    def find(self, name: str, folder: str) -> list[QueuedJob]:
        """The user's jobs of this name and working directory, the newest first."""
        jobs = (self.queue() or {}).values()
        found = [job for job in jobs if (job.name, job.folder) == (name, folder)]
        return sorted(found, key=lambda job: int(job.job), reverse=True)


_FINAL = frozenset(
    (
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"),
        *("DEADLINE", "OUT_OF_MEMORY", "REVOKED"),
    )
)


def _from_accounts(job: str) -> KnownJob | None:
    answer = ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,JobName")
    lines = (answer or "").strip().splitlines()
    return KnownJob(*lines[-1].split("|", 2)) if lines and lines[-1].count("|") >= 2 else None


def _from_controller(job: str) -> KnownJob | None:
    answer = ask("scontrol", "show", "job", job, "--oneliner")
    fields = parse_fields(answer) if answer else {}
    if "JobState" not in fields:
        return None
    return KnownJob(fields["JobState"], fields.get("ExitCode", "?"), fields.get("JobName", ""))


_COLUMNS = "%i|%T|%M|%r|%j|%Z"


def parse_queue(text: str) -> dict[str, QueuedJob]:
    """The answer of `squeue -o` with our columns."""
    found = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 5)
        if len(parts) == 6:
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
            command, capture_output=True, text=True, timeout=_LOOK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def instruct(*command: str) -> str | None:
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
    said = " ".join(words.replace("sbatch: error: ", "").split())
    if not said:  # it was killed, and the controller may have the job
        return unanswered("it ended without a word")
    if any(away in said.lower() for away in _AWAY):
        return Unreachable(f"Slurm cannot be reached: {said}", mend=_WHETHER_BACK)
    return UserError(
        f"Slurm refused the job: {said}",
        expected="partition, account, qos, time and sizes that this cluster grants",
        mend="Change the cluster file; `sinfo -o '%P %l %D %c %m %G'` shows what there is",
    )


def unanswered(words: str) -> Unreachable:
    """The error for a submission of which sbatch does not say whether it was made."""
    return Unreachable(f"sbatch gave no answer that is understood: {words}", mend=_WHETHER_BACK)


_WHETHER_BACK = "`scontrol ping` shows whether it is back"
