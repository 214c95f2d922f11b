"""Submits runs to Slurm, looks at them there, cancels them.

The job's name is the run's, its working directory the run's folder: so a job whose client died
before it could record the id is found again, and never submitted twice.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from igpt.clusters.base import Launch, Plan
from igpt.clusters.slurm import client
from igpt.clusters.slurm.client import KnownJob, QueuedJob, Slurm
from igpt.clusters.slurm.config import SlurmCluster
from igpt.clusters.slurm.jobs import read_job, recorded_job, write_job
from igpt.clusters.slurm.place import job_folder, make
from igpt.errors import IgptError, Superseded, Unreachable, UserError
from igpt.jobs.estimate import counted
from igpt.runs import Run, snapshot
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.state import Sight

log = logging.getLogger("igpt")

#: One for all runs that this process asks about.
SLURM = Slurm()
#: What scancel says of a job that is not in the queue any more.
_GONE = ("invalid job id", "already completing or completed")


class SlurmBackend:
    """A job of Slurm is a run; Slurm itself looks after it."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster

    def plan(self, launch: Launch) -> Plan:
        """The sbatch script."""
        from igpt.clusters.slurm.script import executor, node_command  # which import submitit

        cluster = self.cluster
        gpus = f", {cluster.gpus_per_node} GPUs a node" if cluster.gpus_per_node else ""
        facts = {
            "cluster": f"slurm: {counted(cluster.nodes, 'node')} x "
            f"{counted(cluster.workers_per_node, 'worker')} x "
            f"{counted(cluster.cpus_per_worker, 'core')}{gpus}, {cluster.time} an attempt",
            "folder": str(job_folder(cluster, launch.run_uri)),
        }
        if launch.ray or cluster.ray == "always":
            cores = cluster.workers_per_node * cluster.cpus_per_worker
            facts["ray"] = (
                f"started inside the job, on {counted(cluster.nodes, 'node')} x {cores} cores"
            )
        if doubt := doubtful_folder(cluster.shared_folder()):
            facts["note"] = doubt
        return Plan(facts, executor(cluster, launch).text(node_command(cluster, launch)))

    def check(self) -> None:
        """Raises where this is no login node, or the shared folder cannot be written."""
        client.check_login_node()
        make(self.cluster.shared_folder())

    def submit(self, run: Run, launch: Launch) -> dict[str, Any]:
        """Submits the job and records its id."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from igpt.clusters.slurm.script import executor, node_command

        self.check()
        folder = job_folder(self.cluster, run.uri)
        make(folder)
        if launch.code is not None:
            snapshot.unpack(run.root, launch.code, self.cluster.shared_folder() / "code")
        try:
            job = executor(self.cluster, launch).submit_command(node_command(self.cluster, launch))
        except FailedJobError as error:
            job = self._despite(run, client.rejected(str(error)))
        except FailedSubmissionError as error:
            job = self._despite(run, client.unanswered(str(error).partition("\n")[0]))
        except OSError as error:  # sbatch may have answered already
            full = f"{folder}: {error.strerror or error}"
            job = self._despite(run, Unreachable(full, mend="Make room in the shared folder"))
        SLURM.forget()
        if not write_job(run, launch.attempt, job, restarts=0):
            self._give_way(run, launch.attempt, job)
        launched = {"job": job, "folder": str(folder), "slurm": SLURM.cluster_name()}
        run.event(ev.LAUNCHED, writer="client", attempt=launch.attempt, **launched)
        return launched

    def jobs_of(self, runs: Sequence[Run]) -> tuple[str, ...]:
        """The runs' jobs, for a dependency of Slurm's."""
        jobs = {run.id: recorded_job(run) for run in runs}
        if missing := [identifier for identifier, job in jobs.items() if job is None]:
            raise UserError(
                f"run {missing[0]} is no job of Slurm, so that Slurm cannot wait for it",
                mend=f"Submit again when {missing[0]} has finished",
            )
        return tuple(str(job) for job in jobs.values())

    def look(self, run: Run) -> Sight:
        """What Slurm says of the run's job: its queue first, then its memory."""
        found = self._job(run)
        if found is not None:
            mend = f"see {found.folder}/{found.job}_*_log.err; `scancel {found.job}` ends the job"
            return Sight(True, found.idle, found.described, found.running_seconds, mend)
        if SLURM.queue() is None:
            return Sight(None, reason="Slurm cannot be asked from here")
        job = recorded_job(run)
        known = self._remembered(run)
        if known is None:
            launched = run.last_event(ev.LAUNCHED)
            home = launched.fields.get("slurm") if launched else None
            # The login node of another cluster, with the same store, would not know it either.
            forgotten = home is not None and home == SLURM.cluster_name()
            why = f"Slurm knows no job {job} of this run" if job else ""
            return Sight(False if forgotten else None, reason=why)
        if known.over:
            return Sight(False, reason=f"Slurm job {job} ended as {known.state}, {known.code}")
        return Sight(
            True, known.state in ("PENDING", "SUSPENDED"), f"Slurm job {job} is {known.state}"
        )

    def cancel(self, run: Run) -> bool:
        """A waiting job is taken out of the queue; a running one looks at its record now."""
        found = self._job(run)
        if found is None:
            return self._is_left(run)
        if found.waiting:
            _take_out(found.job)
            queue = SLURM.queue()
            if queue is not None and found.job not in queue:
                return False
        problem = client.instruct("scancel", "--signal=USR1", found.job)
        if problem:  # the request is in the record, and is found there within seconds
            log.warning("%s", problem)
        return True

    def _job(self, run: Run) -> QueuedJob | None:
        """The run's job in the queue, by its number and its name: numbers may be used again."""
        job = recorded_job(run)
        if job is None:
            return self._unrecorded(run)
        found = (SLURM.queue() or {}).get(job)
        if found is None or found.name != run.id:
            return None
        if found.folder == str(job_folder(self.cluster, run.uri)):
            return found
        # What was written down when it was submitted is true, however we would call it now.
        launched = [event.fields for event in run.events({ev.LAUNCHED})]
        noted = [one.get("folder") for one in launched if one.get("job") == job]
        return found if found.folder in noted else None

    def _is_left(self, run: Run) -> bool:
        """Whether a job that our queue does not show lives on; one that waits is taken out."""
        job, known = recorded_job(run), self._remembered(run)
        if job is None or known is None:
            return False
        if known.state == "PENDING":
            _take_out(job)
        return known.state == "SUSPENDED"

    def _remembered(self, run: Run) -> KnownJob | None:
        """What Slurm remembers of the run's job, which our queue does not show."""
        job = recorded_job(run)
        if job is None or job in (SLURM.queue() or {}):  # a number that was used again
            return None
        known = SLURM.known(job)
        return known if known is not None and known.name == run.id else None

    def _unrecorded(self, run: Run) -> QueuedJob | None:
        """A job of this run whose client died before it could record the id."""
        jobs = SLURM.find(run.id, str(job_folder(self.cluster, run.uri)))
        recorded = [read_job(run, number) for number in attempt_numbers(run.record)]
        known = {str(one["job"]) for one in recorded if one is not None}
        return next((job for job in jobs if job.job not in known), None)

    def _give_way(self, run: Run, attempt: int, job: str) -> None:
        """Takes our job back where another client was quicker; it may also be ours that began."""
        owner = read_job(run, attempt)
        if owner is not None and owner["job"] != job:
            client.instruct("scancel", job)
            SLURM.forget()
            raise Superseded(
                f"another client has submitted attempt {attempt} of run {run.id} meanwhile",
                mend=f"igpt-jobs status {run.id} says how it stands",
            )

    def _despite(self, run: Run, error: IgptError) -> str:
        """The job that sbatch submitted although its answer was lost; else raises the error."""
        SLURM.forget()
        found = self._unrecorded(run)
        if found is None and isinstance(error, UserError):
            raise error
        if found is None:
            then = f"then igpt-jobs resume {run.id}"
            raise type(error)(error.what, mend=f"{error.mend}; {then}" if error.mend else then)
        return found.job


def _take_out(job: str) -> None:
    """Takes a job out of the queue, unless it has started meanwhile. Raises Unreachable."""
    problem = client.instruct("scancel", "--state=PENDING", job)
    if problem and not any(words in problem.lower() for words in _GONE):
        raise Unreachable(f"Slurm does not cancel job {job}: {problem}")
    SLURM.forget()


def doubtful_folder(folder: Path) -> str | None:
    """A doubt whether the nodes see a folder; they must, and only they can tell for sure."""
    places = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 nothing is written there
    local = [place for place in places if folder.is_relative_to(place)]
    if local:
        return f"{folder} is below {local[0]}, which nodes seldom share: set `folder`"
    if shutil.which("sbatch") is None:
        return "this machine has no sbatch; submit from the cluster's login node"
    return None
