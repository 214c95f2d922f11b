"""Submission: a job is checked (`propose`), shown (`rehearse`) and started (`accept`).

The record is written before anything is started and the backend's own id after it, so that a client
that dies in between leaves a run that `list` shows and `resume` adopts, never a second one.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import igpt
from igpt.clusters.base import ClusterConfig, Launch, Plan
from igpt.clusters.files import cluster_key
from igpt.clusters.kinds import backend_of
from igpt.clusters.planning.forecast import Forecast, forecast
from igpt.clusters.standing import status
from igpt.config import dump_yaml, plain
from igpt.errors import Superseded, UserError
from igpt.jobs.base import Job, JobConfig, Preparation, Prepared, find_job
from igpt.jobs.pins import hold_model, settle_again
from igpt.jobs.waiting import check_can_finish, deferred, name_latest, unfinished
from igpt.runs import Run, Spec, create_run, snapshot
from igpt.runs import events as ev
from igpt.runs.archive import Files
from igpt.runs.provenance import provenance
from igpt.runs.record import open_run
from igpt.runs.snapshot import Snapshot
from igpt.storage import Store, check_writable


@dataclass(frozen=True)
class Proposal:
    """A submission that has been checked and has not been made."""

    root: Store
    cluster: ClusterConfig
    spec: Spec
    prepared: Prepared
    prepare: Callable[[], Prepared]  # once more
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

    def settled_again(self) -> "Proposal":
        """The same on another checkpoint, as that of its model was dropped. Raises UserError."""
        prepared = settle_again(self.prepared, self.prepare)
        settled = {"config": plain(prepared.config), "inputs": prepared.inputs}
        return replace(self, prepared=prepared, spec=self.spec.model_copy(update=settled))

    def forecast(self) -> Forecast:
        """What it will cost, and what will not fit."""
        job = find_job(self.spec.job)
        return forecast(self.root, job, self.prepared, self.cluster)

    def plan(self) -> Plan:
        """What would be started, to the letter."""
        backend = backend_of(self.cluster)
        return backend.plan(
            launch_of(self.run, self.spec.job, 1, self.code.digest, backend.jobs_of(self.after))
        )


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
    that have to finish first; what they make is looked at when they have, and the pretraining among
    them is the `latest`. Raises UserError where
    the input is wrong.
    """
    config = name_latest(config, after)
    waiting = tuple(run for run in after if unfinished(run))
    check_can_finish(waiting)
    if waiting:
        prepare = partial(deferred, config, waiting, folder)
    else:
        preparation = Preparation(root, folder, cluster.most_workers, dry_run)
        prepare = partial(job.prepare, config, preparation)
    prepared = prepare()
    spec = Spec(
        job=job.name,
        name=job.name if name is None else name,
        config=plain(prepared.config),
        inputs=prepared.inputs,
    )
    code, files = snapshot.take(Path(igpt.__file__).parent)
    origin = provenance(arguments, folder) | {"code": asdict(code)}
    return Proposal(root, cluster, spec, prepared, prepare, code, files, origin, waiting)


def rehearse(proposal: Proposal) -> Submission:
    """What `accept` would come to; nothing is written."""
    run = proposal.run
    facts = proposal.facts
    if run.record.exists("spec.yaml"):
        facts["note"] = f"run {run.id} does this very work already, and is {status(run).state}"
    return Submission(run, False, facts, proposal.plan(), proposal.spec)


def accept(proposal: Proposal, *, new: bool = False) -> Submission:
    """Starts what was proposed, unless the same work exists already.

    Where the checkpoint that it was settled on has been dropped since, it takes a newer one.
    """
    root, cluster = proposal.root, proposal.cluster
    backend_of(cluster).check()
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
    if created and not spec.is_deferred and not hold_model(run, proposal.prepared.config):
        run.delete()
        return accept(proposal.settled_again(), new=new)
    if created:
        run.record.put("provenance.json", origin.encode())
        snapshot.publish(root, proposal.code, proposal.files)
        try:
            launch(run, cluster, 1, code=proposal.code.digest, after=proposal.after)
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


def launch(
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
    intent = run.event(ev.SUBMITTED, writer="client", attempt=attempt, code=code, **more)
    if not run.record.create(cluster_key(attempt), dump_yaml(cluster).encode()):
        run.retract(intent)
        raise Superseded(
            f"attempt {attempt} of run {run.id} has been begun by another meanwhile",
            mend=f"igpt-jobs status {run.id} says how it stands",
        )
    jobs = backend_of(cluster).jobs_of(after)
    backend_of(cluster).submit(run, launch_of(run, run.spec().job, attempt, code, jobs))


def launch_of(run: Run, job: str, attempt: int, code: str | None, after: tuple[str, ...]) -> Launch:
    return Launch(run.uri, attempt, code, after, way_to_store(), find_job(job).ray)


def way_to_store() -> dict[str, str]:
    """The variables that say how the store is reached, for those who run elsewhere. No secrets."""
    return {name: value for name, value in os.environ.items() if name.startswith("IGPT_S3_")}
