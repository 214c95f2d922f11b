"""The life of a run as its user steers it: submit, resume, cancel, and ask how it stands.

The record is written before anything is started and the backend's own id after it, so that a client
that dies in between leaves a run that `list` shows and `resume` adopts, never a second one.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import igpt
from igpt.clusters.base import ClusterConfig, Launch, Plan
from igpt.clusters.files import cluster_at, cluster_key
from igpt.clusters.forecast import Forecast, forecast
from igpt.config import dump_yaml, load, plain
from igpt.errors import NotFound, UserError
from igpt.jobs.base import Job, JobConfig, Preparation, Prepared, find_job
from igpt.jobs.waiting import check_can_finish, deferred, dependencies, unfinished
from igpt.runs import Run, Spec, create_run, snapshot
from igpt.runs import events as ev
from igpt.runs.archive import Files
from igpt.runs.attempts import attempt_numbers
from igpt.runs.failures import FailureClass
from igpt.runs.provenance import provenance
from igpt.runs.record import open_run
from igpt.runs.snapshot import Snapshot
from igpt.runs.state import RunState, Sight, Status
from igpt.storage import Store, check_writable


@dataclass(frozen=True)
class Proposal:
    """A submission that has been checked and has not been made."""

    root: Store
    cluster: ClusterConfig
    spec: Spec
    prepared: Prepared
    code: Snapshot
    files: Files
    origin: dict[str, Any]  # the provenance
    after: tuple[Run, ...] = ()  # unfinished runs that it has to wait for

    @property
    def run(self) -> Run:
        """The run it would be, if no such run exists."""
        return open_run(self.root, self.spec.id)

    @property
    def facts(self) -> dict[str, str]:
        """What the user wants to see beforehand."""
        facts = self.prepared.facts | {"code": self.code.described()}
        if self.after:
            facts["after"] = ", ".join(run.id for run in self.after)
        return facts

    def forecast(self) -> Forecast:
        """What it will cost, and what will not fit."""
        job = find_job(self.spec.job)
        return forecast(self.root, job, self.prepared, self.cluster)

    def plan(self) -> Plan:
        """What would be started, to the letter."""
        backend = self.cluster.backend()
        return backend.plan(_launch_of(self.run, 1, self.code.digest, backend.jobs_of(self.after)))


@dataclass(frozen=True)
class Submission:
    """What a submission came to. `created` is False for a dry run and for a run that existed."""

    run: Run
    created: bool
    facts: dict[str, str]
    plan: Plan
    spec: Spec


def propose(
    root: Store,
    job: Job,
    config: JobConfig,
    cluster: ClusterConfig,
    *,
    folder: Path,
    arguments: list[str],
    name: str | None = None,
    after: Sequence[Run] = (),
    dry_run: bool = False,
) -> Proposal:
    """Checks a job and its inputs; nothing is written where it is a dry run, and nothing started.

    folder: where relative paths begin. arguments: the command line, for the record. after: runs
    that have to finish first; what they make is looked at when they have. Raises UserError where
    the input is wrong.
    """
    waiting = tuple(run for run in after if unfinished(run))
    check_can_finish(waiting)
    if waiting:
        prepared = deferred(config, waiting, folder)
    else:
        prepared = job.prepare(config, Preparation(root, folder, cluster.workers, dry_run))
    spec = Spec(
        job=job.name, name=name or job.name, config=plain(prepared.config), inputs=prepared.inputs
    )
    code, files = snapshot.take(Path(igpt.__file__).parent)
    origin = provenance(arguments, folder) | {"code": asdict(code)}
    return Proposal(root, cluster, spec, prepared, code, files, origin, waiting)


def rehearse(proposal: Proposal) -> Submission:
    """What `accept` would come to; nothing is written."""
    run = proposal.run
    facts = proposal.facts
    if run.record.exists("spec.yaml"):
        facts["note"] = f"run {run.id} does this very work already, and is {status(run).state}"
    return Submission(run, False, facts, proposal.plan(), proposal.spec)


def accept(proposal: Proposal, *, new: bool = False) -> Submission:
    """Starts what was proposed, unless the same work exists already."""
    root, cluster = proposal.root, proposal.cluster
    cluster.backend().check()
    check_writable(root)
    origin = json.dumps(proposal.origin, indent=1)  # before the record is begun
    spec = proposal.spec
    run, created = create_run(
        root,
        job=spec.job,
        name=spec.name,
        config=spec.config,
        inputs=spec.inputs,
        new=new,
        status=status,
    )
    if created:
        run.record.put("provenance.json", origin.encode())
        snapshot.publish(root, proposal.code, proposal.files)
        try:
            _launch(run, cluster, 1, code=proposal.code.digest, after=proposal.after)
        except UserError:
            run.delete()  # refused: nothing was started, and nothing is left
            raise
    return Submission(run, created, proposal.facts, proposal.plan(), run.spec())


def submit(
    root: Store,
    job: Job,
    config: JobConfig,
    cluster: ClusterConfig,
    *,
    folder: Path,
    arguments: list[str],
    name: str | None = None,
    after: Sequence[Run] = (),
    new: bool = False,
) -> Submission:
    """`propose` and `accept` in one."""
    proposal = propose(
        root, job, config, cluster, folder=folder, arguments=arguments, name=name, after=after
    )
    return accept(proposal, new=new)


def resume(
    run: Run,
    cluster: ClusterConfig | None = None,
    *,
    force: bool = False,
    from_step: int | None = None,
    new_code: bool = False,
) -> ClusterConfig:
    """Starts a new attempt of a run that has stopped; returns the cluster it goes on.

    cluster: another one than before; its workers must fit the job. force: also while the run seems
    alive; the new attempt then takes it over and the old one commits nothing more. from_step: from
    the newest checkpoint that is not beyond this step; what came after it no longer counts.
    new_code: with the code as it is now, not with that of the submission.
    """
    now = status(run)
    if now.state is RunState.FINISHED:
        raise UserError(
            f"run {run.id} has finished; there is nothing to resume",
            mend="submit --new runs the same work again",
        )
    if now.state.active and not force:
        raise UserError(
            f"run {run.id} is {now.state}",
            expected="a run that has stopped",
            mend=f"igpt-jobs cancel {run.id} first, or --force to take it over",
        )
    chosen = cluster or cluster_of(run)
    if chosen is None:
        raise UserError(
            f"run {run.id} records no cluster (its client died early)",
            mend=f"igpt-jobs resume {run.id} --cluster FILE",
        )
    spec = run.spec()
    if cluster is not None and not spec.is_deferred:
        job = find_job(spec.job)
        config = load(job.config, json.dumps(spec.config), f"{run.uri}/spec.yaml, config")
        job.prepare(config, Preparation(run.root, Path("/"), cluster.workers, dry_run=True))
    chosen.backend().check()
    waiting = [other for other in dependencies(run) if unfinished(other)]
    check_can_finish(waiting)
    code = code_of(run)
    if new_code or code is None:
        taken, files = snapshot.take(Path(igpt.__file__).parent)
        snapshot.publish(run.root, taken, files)
        code = taken.digest
    attempt = _newest_attempt(run) + 1
    try:
        _launch(run, chosen, attempt, code=code, after=waiting, from_step=from_step)
    except UserError as error:
        # Refused: the attempt never was, and a run that still lives is left as it is.
        run.record.delete([cluster_key(attempt)])
        if not now.state.active:
            fields = {"class": FailureClass.USER_ERROR.value, "reason": error.what, "final": True}
            run.event(ev.FAILED, writer="client", attempt=attempt, **fields)
        raise
    return chosen


def cancel(run: Run) -> Status:
    """Asks a run to stop for good, its work saved; one that is not alive is cancelled at once."""
    sight = look(run)
    now = run.status(sight=sight)
    if now.state in (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED):
        return now
    attempt = _newest_attempt(run)
    run.event(ev.CANCEL_REQUESTED, writer="client", attempt=attempt)
    cluster = cluster_of(run)
    found = cluster.backend().cancel(run) if cluster else False
    if not found and (now.state is RunState.STALLED or sight.waiting):
        run.event(ev.CANCELLED, writer="client", attempt=attempt)
    return status(run)


def look(run: Run) -> Sight:
    """What the run's backend sees of its supervisor."""
    cluster = cluster_of(run)
    return cluster.backend().look(run) if cluster else Sight()


def status(run: Run) -> Status:
    """How a run stands, by its record and by what its backend knows."""
    now = run.status(sight=look(run))
    if now.state is not RunState.STALLED or run.last_event(ev.STARTED):
        return now
    submitted = run.last_event(ev.SUBMITTED)
    before = submitted.fields.get("after", []) if submitted else []
    try:
        check_can_finish(open_run(run.root, identifier) for identifier in before)
    except UserError as error:  # the scheduler gave it up, and has no better word than cancelled
        return replace(now, reason=error.what, next=error.mend)
    return now


def cluster_of(run: Run) -> ClusterConfig | None:
    """The cluster of the newest attempt."""
    for number in reversed(attempt_numbers(run.record)):
        try:
            return cluster_at(run, number)
        except NotFound:
            continue
    return None


def code_of(run: Run) -> str | None:
    """The digest of the code that the run was last submitted with; None for an installed wheel."""
    submitted = run.last_event(ev.SUBMITTED)
    return None if submitted is None else submitted.fields.get("code")


def describe(submission: Submission) -> dict[str, Any]:
    """A submission as plain data, for --json."""
    return {
        "run": submission.run.id,
        "uri": submission.run.uri,
        "created": submission.created,
        "job": submission.spec.job,
        "facts": submission.facts | submission.plan.facts,
        "command": submission.plan.text,
        "config": submission.spec.config,
        "inputs": submission.spec.inputs,
    }


def _newest_attempt(run: Run) -> int:
    """The newest attempt that was begun, or only meant: its client died, or it was refused."""
    submitted = run.last_event(ev.SUBMITTED)
    meant = submitted.attempt if submitted else None
    return max([*attempt_numbers(run.record), meant or 0])


def _launch(
    run: Run,
    cluster: ClusterConfig,
    attempt: int,
    *,
    code: str | None,
    after: Sequence[Run] = (),
    from_step: int | None = None,
) -> None:
    """Intent before action: the event and the cluster are recorded, then the backend is asked."""
    more: dict[str, Any] = {} if from_step is None else {"from_step": from_step}
    if after:
        more["after"] = [other.id for other in after]
    run.event(ev.SUBMITTED, writer="client", attempt=attempt, code=code, **more)
    run.record.put(cluster_key(attempt), dump_yaml(cluster).encode())
    cluster.backend().submit(run, _launch_of(run, attempt, code, cluster.backend().jobs_of(after)))


def _launch_of(run: Run, attempt: int, code: str | None, after: tuple[str, ...]) -> Launch:
    reach = {name: value for name, value in os.environ.items() if name.startswith("IGPT_S3_")}
    return Launch(run.uri, attempt, code, after, reach)
