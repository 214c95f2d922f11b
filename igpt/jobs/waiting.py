"""Runs that wait for others: what they read does not exist yet when they are submitted.

Such a run's record names the runs it waits for among its inputs (`after`) and keeps the recipe as
it was given, but for a `latest` model that one of them makes; the digest of that identifies the
work, as the names of runs are digests themselves. When its turn comes, the job's `prepare` is
called as it would have been by the client, and what it finds is written into the record once, as
`settled.json`.
"""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from igpt.config import load, plain
from igpt.errors import NotFound, UserError
from igpt.jobs.base import EvaluationConfig, Job, JobConfig, Preparation, Prepared
from igpt.jobs.pins import hold_model, settle_again
from igpt.jobs.references import only_pretraining
from igpt.runs import Run, Spec
from igpt.runs.record import SETTLED, open_run
from igpt.runs.state import RunState


def unfinished(run: Run) -> bool:
    """Whether a run has still to be waited for."""
    return run.result() is None


def check_can_finish(runs: Iterable[Run]) -> None:
    """Raises UserError where one of these runs has ended without having finished, or is gone."""
    for run in runs:
        try:
            run.spec()  # after it was deleted, its ranks may have written events
            now = run.status()
        except NotFound:
            raise UserError(
                f"run {run.id}, which has to finish first, was deleted",
                mend="Submit both again",
            ) from None
        if now.state in (RunState.FAILED, RunState.CANCELLED):
            raise UserError(
                f"run {run.id}, which has to finish first, is {now.state}: {now.reason}",
                mend=f"igpt-jobs resume {run.id} first",
            )


def name_latest(config: JobConfig, after: Sequence[Run]) -> JobConfig:
    """The recipe with its model `latest` made the pretraining among `after`, where there is one.

    after: the runs to start after; the latest model is what they make, not what others have made
    meanwhile. Raises UserError where there are several pretrainings among them.
    """
    if not isinstance(config, EvaluationConfig) or config.model != "latest":
        return config
    made = only_pretraining(after)
    return config.model_copy(update={"model": made.id}) if made else config


def deferred(config: JobConfig, after: Sequence[Run], folder: Path) -> Prepared:
    """The submission of a run that waits: nothing it reads is looked at yet."""
    model = {"model": config.model} if isinstance(config, EvaluationConfig) else {}
    return Prepared(
        config,
        inputs={"after": [run.id for run in after], "folder": str(folder)},
        facts=model | {"inputs": "are checked when the runs before it have finished"},
    )


def dependencies(run: Run) -> list[Run]:
    """The runs that a run waits for, or has waited for."""
    return [open_run(run.root, identifier) for identifier in run.spec().inputs.get("after", [])]


def settle_inputs(run: Run, job: Job, workers: int) -> Spec:
    """The run's spec, complete: of a run that had to wait, its inputs are looked at now.

    Raises UserError where a run before it has not finished, or made what does not fit.
    """
    spec = run.spec()
    if not spec.is_deferred or run.record.exists(SETTLED):
        return spec
    before = dependencies(run)
    if waiting := [other.id for other in before if unfinished(other)]:
        raise UserError(
            f"run {', '.join(waiting)} has not finished",
            expected=f"to be started after it, as run {run.id} was submitted",
            mend=f"igpt-jobs resume {run.id} when it has",
        )
    config = load(job.config, json.dumps(spec.config), f"{run.uri}/spec.yaml, config")
    folder = Path(spec.inputs["folder"])
    prepare = partial(job.prepare, config, Preparation(run.root, folder, workers))
    prepared = prepare()
    while not hold_model(run, prepared.config):
        prepared = settle_again(prepared, prepare)
    body = {"config": plain(prepared.config), "inputs": spec.inputs | prepared.inputs}
    run.record.create(SETTLED, json.dumps(body, indent=1).encode())
    return run.spec()
