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
from igpt.config import dump_yaml, plain, read_yaml
from igpt.errors import NotFound, UserError
from igpt.jobs.base import Job, JobConfig, Preparation
from igpt.runs import Run, Spec, create_run
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers
from igpt.runs.provenance import provenance
from igpt.runs.record import open_run
from igpt.runs.state import RunState, Status
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
    prepared = job.prepare(config, Preparation(root, folder, cluster.workers))
    spec = Spec(
        job=job.name, name=name or job.name, config=plain(prepared.config), inputs=prepared.inputs
    )
    backend = cluster.backend()
    if dry_run:
        run = open_run(root, spec.id)
        return Submission(run, False, prepared.facts, backend.plan(run.uri), spec)
    check_writable(root)
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
        body = json.dumps(provenance(arguments, folder), indent=1)
        run.record.put("provenance.json", body.encode())
        _launch(run, cluster, 1)
    return Submission(run, created, prepared.facts, plan, run.spec())


def resume(run: Run, cluster: ClusterConfig | None = None, *, force: bool = False) -> ClusterConfig:
    """Starts a new attempt of a run that has stopped; returns the cluster it goes on.

    cluster: another one than before. force: also while the run seems alive; the new attempt then
    takes it over and the old one commits nothing more.
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
    _launch(run, chosen, max(attempt_numbers(run.record), default=0) + 1)
    return chosen


def cancel(run: Run) -> Status:
    """Asks a run to stop for good, its work saved; one that is not alive is cancelled at once."""
    now = status(run)
    if now.state in (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED):
        return now
    attempt = max(attempt_numbers(run.record), default=0)
    run.event(ev.CANCEL_REQUESTED, writer="client", attempt=attempt)
    cluster = cluster_of(run)
    if cluster is None or now.state in (RunState.STALLED, RunState.SUBMITTED):
        run.event(ev.CANCELLED, writer="client", attempt=attempt)
    else:
        cluster.backend().cancel(run)
    return status(run)


def status(run: Run) -> Status:
    """How a run stands, by its record and by what its backend knows."""
    cluster = cluster_of(run)
    return run.status(alive=cluster.backend().alive(run) if cluster else None)


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


def _launch(run: Run, cluster: ClusterConfig, attempt: int) -> None:
    """Intent before action: the event and the cluster are recorded, then the backend is asked."""
    run.event(ev.SUBMITTED, writer="client", attempt=attempt)
    run.record.put(f"attempts/{attempt:04d}/cluster.yaml", dump_yaml(cluster).encode())
    cluster.backend().submit(run, attempt)
