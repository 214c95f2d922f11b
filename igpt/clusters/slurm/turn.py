"""Which attempt a start of a job is, and whether the job may work on the run at all.

Slurm starts a job again by itself, when a node died or a more important job needed the place. So
the job finds out by the record: each attempt names its job and the number of that job's restarts.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from igpt.clusters.files import cluster_key
from igpt.clusters.outcome import settle
from igpt.clusters.slurm.client import ask, parse_fields
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.jobs import read_job, write_job
from igpt.errors import NotFound, Superseded
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers, claim_key
from igpt.runs.failures import FailureClass, Verdict
from igpt.runs.reading import read_json
from igpt.runs.state import RunState, Sight

#: Begins what each start of a job writes into the shared folder, before its launch.
START_MARK = "igpt-jobs: start"

_OVER = frozenset({RunState.FINISHED, RunState.FAILED, RunState.CANCELLED})


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
    the attempt's end is recorded first, and counts. May be called again where the store was away.
    """
    last = max(attempt_numbers(run.record))
    found = read_job(run, last)
    if found is None and turn.submitted == last:
        # The client died before it could record the job, or is about to.
        write_job(run, last, turn.job, restarts=turn.restarts)
        found = read_job(run, last)
    if found is None or found["job"] != turn.job:
        raise Superseded(f"attempt {last} of run {run.id} is another job's, not {turn.job}'s")
    if run.status(sight=Sight(True)).state in _OVER:
        raise Superseded(f"run {run.id} is over")
    if last == turn.submitted and not _is_launched(run, last):
        where = {"job": turn.job, "slurm": os.environ.get("SLURM_CLUSTER_NAME")}
        run.event(ev.LAUNCHED, writer="supervisor", attempt=last, **where)
    if found["restarts"] == turn.restarts and not run.record.exists(claim_key(last)):
        return last
    if run.record.exists(claim_key(last)) and not is_settled(run, last):
        verdict = lost(run, last)
        settled = settle(run, last, verdict, cluster.retries, cluster.notify, patience=0.0)
        if not settled.again:
            raise Superseded(f"run {run.id} is not tried again: {settled.kind}")
    return open_attempt(run, turn)


def open_attempt(run: Run, turn: Turn) -> int:
    """Makes the next attempt, for this start of the job. The same again is the same attempt."""
    last = max(attempt_numbers(run.record))
    made = {"job": turn.job, "restarts": turn.restarts}
    number = last if read_job(run, last) == made else last + 1
    mine = write_job(run, number, turn.job, restarts=turn.restarts)
    if not mine and read_job(run, number) != made:
        raise Superseded(f"attempt {number} of run {run.id} is another job's")
    run.record.put(cluster_key(number), run.record.get(cluster_key(turn.submitted)))
    if not any(event.attempt == number for event in run.events({ev.REQUEUED})):
        run.event(ev.REQUEUED, writer="supervisor", attempt=number)
    return number


def _is_launched(run: Run, attempt: int) -> bool:
    """Whether the client, or an earlier start, has recorded that there is a job."""
    return any(event.attempt == attempt for event in run.events({ev.LAUNCHED}))


def is_settled(run: Run, attempt: int) -> bool:
    """Whether the end of an attempt is recorded."""
    ends = {ev.FAILED, ev.PREEMPTED, ev.SUPERSEDED, ev.CANCELLED, ev.FINISHED}
    return any(event.attempt == attempt for event in run.events(ends))


def lost(run: Run, attempt: int) -> Verdict:
    """Why Slurm started a job again without a word from its ranks: node failure or preemption."""
    try:
        hosts = read_json(run.record, meeting_key(attempt))["hosts"]
    except NotFound:
        hosts = []
    if gone := gone_nodes(hosts):
        return Verdict("failed", FailureClass.NODE, f"node {', '.join(gone)} is gone")
    return Verdict("stopped", FailureClass.PREEMPTED, "Slurm stopped the job at once")


def meeting_key(attempt: int) -> str:
    """Where node 0 says which launch this attempt is, on which hosts, and where its ranks meet."""
    return f"attempts/{attempt:04d}/meeting.json"


def gone_nodes(hosts: Collection[str]) -> list[str]:
    """Those of these nodes that Slurm has lost."""
    return [
        fields["NodeName"]
        for fields in nodes()
        if fields["NodeName"] in hosts and set(fields.get("State", "").split("+")) & _GONE
    ]


#: States of a node in Slurm's words; the star says that it does not answer.
_GONE = frozenset({"DOWN", "DOWN*", "FAIL", "NOT_RESPONDING"})


def hosts_of(nodelist: str) -> list[str]:
    """The names in a list such as `n[1-3]`; none where Slurm cannot be asked."""
    return (ask("scontrol", "show", "hostnames", nodelist) or "").split()


def nodes() -> list[dict[str, str]]:
    """Slurm's nodes, their fields by name."""
    answer = ask("scontrol", "show", "nodes", "--oneliner") or ""
    return [parse_fields(line) for line in answer.splitlines() if line.startswith("NodeName=")]
