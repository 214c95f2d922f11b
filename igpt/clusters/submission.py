"""The life of a run as its user steers it: submit, resume, cancel, and ask how it stands.

The record is written before anything is started and the backend's own id after it, so that a client
that dies in between leaves a run that `list` shows and `resume` adopts, never a second one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igpt.clusters.base import ClusterConfig, Plan
from igpt.clusters.files import parse_cluster
from igpt.config import dump_yaml, load, plain, read_yaml
from igpt.errors import NotFound, UserError
from igpt.jobs.base import Job, JobConfig, Preparation, find_job
from igpt.runs import Run, Spec, create_run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.provenance import provenance
from igpt.runs.record import open_run
from igpt.runs.state import RunState, Sight, Status
from igpt.storage import Store, check_writable


@dataclass(frozen=True)
class Submission:
    """What a submission came to. `created` is False for a dry run and for a run that existed."""

    run: Run
    created: bool
    facts: dict[str, str]
    plan: Plan
    spec: Spec


def submit(
    root: Store,
    job: Job,
    config: JobConfig,
    cluster: ClusterConfig,
    *,
    folder: Path,
    arguments: list[str],
    name: str | None = None,
    new: bool = False,
    dry_run: bool = False,
) -> Submission:
    """Checks a job and its inputs and, unless it is a dry run, starts it.

    folder: where relative paths begin. arguments: the command line, for the record. Raises
    UserError before anything is written where the input is wrong.
    """
    prepared = job.prepare(config, Preparation(root, folder, cluster.workers, dry_run))
    spec = Spec(
        job=job.name, name=name or job.name, config=plain(prepared.config), inputs=prepared.inputs
    )
    backend = cluster.backend()
    if dry_run:
        run = open_run(root, spec.id)
        facts = dict(prepared.facts)
        if run.record.exists("spec.yaml"):
            facts["note"] = f"run {run.id} does this very work already, and is {status(run).state}"
        return Submission(run, False, facts, backend.plan(run.uri), spec)
    check_writable(root)
    origin = json.dumps(provenance(arguments, folder), indent=1)  # before the record is begun
    run, created = create_run(
        root,
        job=spec.job,
        name=spec.name,
        config=spec.config,
        inputs=spec.inputs,
        new=new,
        status=status,
    )
    plan = backend.plan(run.uri)
    if created:
        run.record.put("provenance.json", origin.encode())
        _launch(run, cluster, 1)
    return Submission(run, created, prepared.facts, plan, run.spec())


def resume(
    run: Run,
    cluster: ClusterConfig | None = None,
    *,
    force: bool = False,
    from_step: int | None = None,
) -> ClusterConfig:
    """Starts a new attempt of a run that has stopped; returns the cluster it goes on.

    cluster: another one than before; its workers must fit the job. force: also while the run seems
    alive; the new attempt then takes it over and the old one commits nothing more. from_step: from
    the newest checkpoint that is not beyond this step; what came after it no longer counts.
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
    if cluster is not None:
        spec = run.spec()
        job = find_job(spec.job)
        config = load(job.config, json.dumps(spec.config), f"{run.uri}/spec.yaml, config")
        job.prepare(config, Preparation(run.root, Path("/"), cluster.workers, dry_run=True))
    attempt = max(attempt_numbers(run.record), default=0) + 1
    _launch(run, chosen, attempt, from_step=from_step)
    return chosen


def cancel(run: Run) -> Status:
    """Asks a run to stop for good, its work saved; one that is not alive is cancelled at once."""
    now = status(run)
    if now.state in (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED):
        return now
    attempt = max(attempt_numbers(run.record), default=0)
    run.event(ev.CANCEL_REQUESTED, writer="client", attempt=attempt)
    cluster = cluster_of(run)
    backend = cluster.backend() if cluster else None
    if backend is not None:
        backend.cancel(run)
    if now.state is RunState.STALLED and not (backend and backend.look(run).alive):
        run.event(ev.CANCELLED, writer="client", attempt=attempt)
    return status(run)


def look(run: Run) -> Sight:
    """What the run's backend sees of its supervisor."""
    cluster = cluster_of(run)
    return cluster.backend().look(run) if cluster else Sight()


def status(run: Run) -> Status:
    """How a run stands, by its record and by what its backend knows."""
    return run.status(sight=look(run))


def cluster_of(run: Run) -> ClusterConfig | None:
    """The cluster of the newest attempt."""
    for number in reversed(attempt_numbers(run.record)):
        key = f"attempts/{number:04d}/cluster.yaml"
        try:
            text = run.record.get(key).decode()
        except NotFound:
            continue
        return parse_cluster(read_yaml(text, f"{run.uri}/{key}"))
    return None


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


def _launch(
    run: Run, cluster: ClusterConfig, attempt: int, *, from_step: int | None = None
) -> None:
    """Intent before action: the event and the cluster are recorded, then the backend is asked."""
    limit = {} if from_step is None else {"from_step": from_step}
    run.event(ev.SUBMITTED, writer="client", attempt=attempt, **limit)
    run.record.put(f"attempts/{attempt:04d}/cluster.yaml", dump_yaml(cluster).encode())
    cluster.backend().submit(run, attempt)
