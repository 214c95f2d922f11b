"""Which attempt a start of a job is, and whether the job may work on the run at all.

Slurm starts a job again by itself, when a node died or a more important job needed the place. So
the job finds out by the record: each attempt names its job and the number of that job's restarts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from igpt.clusters.outcome import settle
from igpt.clusters.slurm.backend import read_job, write_job
from igpt.clusters.slurm.client import ask, parse_fields
from igpt.clusters.slurm.config import SlurmCluster
from igpt.errors import Superseded
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers, claim_key
from igpt.runs.failures import FailureClass, Verdict


@dataclass(frozen=True)
class Turn:
    """One start of a job."""

    job: str
    restarts: int  # how often Slurm has started it before
    submitted: int  # the attempt that it was submitted for

    @property
    def launch(self) -> str:
        """The word by which the processes of this start know each other."""
        return f"{self.job}.{self.restarts}"

    @staticmethod
    def of_job(environment: Mapping[str, str], submitted: int) -> "Turn":
        """The turn of the job that we are in."""
        restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        return Turn(environment["SLURM_JOB_ID"], restarts, submitted)


def take_turn(run: Run, turn: Turn, cluster: SlurmCluster) -> int:
    """The attempt of this start. Raises Superseded where the run is another's, or over.

    A job that starts again without having settled its last attempt was started by Slurm itself:
    the attempt's end is recorded first, and counts.
    """
    last = max(attempt_numbers(run.record))
    found = read_job(run, last)
    if found is None and turn.submitted == last:
        # The client died before it could record the job, or is about to.
        if write_job(run, last, turn.job, restarts=turn.restarts):
            run.event(ev.LAUNCHED, writer="supervisor", attempt=last, job=turn.job)
        found = read_job(run, last)
    if found is None or found["job"] != turn.job:
        raise Superseded(f"attempt {last} of run {run.id} is another job's, not {turn.job}'s")
    if found["restarts"] == turn.restarts and not run.record.exists(claim_key(last)):
        return last
    if run.record.exists(claim_key(last)) and not is_settled(run, last):
        settled = settle(run, last, lost(run, last), cluster.retries, cluster.notify)
        if not settled.again:
            raise Superseded(f"run {run.id} is not tried again: {settled.kind}")
    return open_attempt(run, turn)


def open_attempt(run: Run, turn: Turn) -> int:
    """Makes the next attempt, for this start of the job."""
    last = max(attempt_numbers(run.record))
    copied = run.record.get(f"attempts/{last:04d}/cluster.yaml")
    if not write_job(run, last + 1, turn.job, restarts=turn.restarts):
        raise Superseded(f"attempt {last + 1} of run {run.id} is another job's")
    run.record.put(f"attempts/{last + 1:04d}/cluster.yaml", copied)
    run.event(ev.REQUEUED, writer="supervisor", attempt=last + 1)
    return last + 1


def is_settled(run: Run, attempt: int) -> bool:
    """Whether the end of an attempt is recorded."""
    ends = {ev.FAILED, ev.PREEMPTED, ev.SUPERSEDED, ev.CANCELLED, ev.FINISHED}
    return any(event.attempt == attempt for event in run.events(ends))


def lost(run: Run, attempt: int) -> Verdict:
    """Why Slurm started a job again without a word from its ranks: node failure or preemption."""
    beat = run.heartbeat()
    down = [fields for fields in nodes() if "DOWN" in fields.get("State", "")]
    names = ", ".join(fields.get("NodeName", "?") for fields in down)
    host = f", last seen on {beat.host}" if beat else ""
    if down:
        return Verdict("failed", FailureClass.NODE, f"Slurm lost a node ({names}){host}")
    return Verdict("stopped", FailureClass.PREEMPTED, f"Slurm stopped the job at once{host}")


def nodes() -> list[dict[str, str]]:
    """Slurm's nodes, their fields by name."""
    answer = ask("scontrol", "show", "nodes", "--oneliner") or ""
    return [parse_fields(line) for line in answer.splitlines() if line.startswith("NodeName=")]
