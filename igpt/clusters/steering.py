"""What a user does to a run that exists: resume it, cancel it."""

import json
from pathlib import Path

import igpt
from igpt.clusters.base import ClusterConfig
from igpt.clusters.files import cluster_key
from igpt.clusters.kinds import backend_of
from igpt.clusters.standing import cluster_of, look, status
from igpt.clusters.submission import launch
from igpt.config import load
from igpt.errors import UserError
from igpt.jobs.base import Preparation, find_job
from igpt.jobs.references import committed_checkpoints
from igpt.jobs.waiting import check_can_finish, dependencies, unfinished
from igpt.runs import Run, snapshot
from igpt.runs import events as ev
from igpt.runs.attempts import attempt_numbers, on_lineage
from igpt.runs.failures import FailureClass
from igpt.runs.state import RunState, Status


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
    the newest checkpoint that is not beyond this step; what came after it no longer counts. Only 0
    begins anew. new_code: with the code as it is now, not with that of the submission.
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
    if from_step:
        _check_step(run, from_step)
    spec = run.spec()
    if cluster is not None and not spec.is_deferred:
        job = find_job(spec.job)
        config = load(job.config, json.dumps(spec.config), f"{run.uri}/spec.yaml, config")
        job.prepare(config, Preparation(run.root, Path("/"), cluster.most_workers, dry_run=True))
    backend_of(chosen).check()
    waiting = [other for other in dependencies(run) if unfinished(other)]
    check_can_finish(waiting)
    code = code_of(run)
    if new_code or code is None:
        taken, files = snapshot.take(Path(igpt.__file__).parent)
        snapshot.publish(run.root, taken, files)
        code = taken.digest
    attempt = _newest_attempt(run) + 1
    try:
        launch(run, chosen, attempt, code=code, after=waiting, from_step=from_step)
    except UserError as error:
        # Refused: the attempt never was, and a run that still lives is left as it is.
        run.record.delete([cluster_key(attempt)])
        if now.state.active:
            for event in run.events({ev.SUBMITTED}):
                if event.attempt == attempt:
                    run.retract(event)
        else:
            fields = {"class": FailureClass.USER_ERROR.value, "reason": error.what, "final": True}
            run.event(ev.FAILED, writer="client", attempt=attempt, **fields)
        raise
    return chosen


def _check_step(run: Run, from_step: int) -> None:
    """Raises UserError where no checkpoint that counts is at or before the step."""
    claims = run.claims()
    steps = [
        step for step, attempt in committed_checkpoints(run) if on_lineage(claims, attempt, step)
    ]
    if not any(step <= from_step for step in steps):
        there = ", ".join(map(str, steps))
        raise UserError(
            f"run {run.id} has no checkpoint at or before step {from_step}",
            expected=f"a step from {steps[0]} on; there are {there}" if steps else "",
            mend="--from 0 begins anew, and what came before then no longer counts",
        )


def cancel(run: Run) -> Status:
    """Asks a run to stop for good, its work saved; one that is not alive is cancelled at once."""
    sight = look(run)
    now = run.status(sight=sight)
    if now.state in (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED):
        return now
    attempt = _newest_attempt(run)
    run.event(ev.CANCEL_REQUESTED, writer="client", attempt=attempt)
    cluster = cluster_of(run)
    found = backend_of(cluster).cancel(run) if cluster else False
    if not found and (now.state is RunState.STALLED or sight.waiting):
        run.event(ev.CANCELLED, writer="client", attempt=attempt)
    return status(run)


def code_of(run: Run) -> str | None:
    """The digest of the code that the run was last submitted with; None for an installed wheel."""
    submitted = run.last_event(ev.SUBMITTED)
    return None if submitted is None else submitted.fields.get("code")


def _newest_attempt(run: Run) -> int:
    """The newest attempt that was begun, or only meant: its client died, or it was refused."""
    submitted = run.last_event(ev.SUBMITTED)
    meant = submitted.attempt if submitted else None
    return max([*attempt_numbers(run.record), meant or 0])
