"""A run keeps the checkpoint that it needs of another run, which may still drop its older ones.

The pin is an object in the checkpoint's folder (`igpt.model.sealed`) of the name of the run that
needs it. It holds as long as that run exists and has not finished: one that has failed may be
resumed.
"""

import re
from collections.abc import Callable

from igpt.errors import UserError
from igpt.jobs.base import EvaluationConfig, JobConfig, Prepared
from igpt.model.sealed import SEAL, pin
from igpt.runs import Run
from igpt.runs.record import open_run
from igpt.storage import Store

_CHECKPOINT = re.compile(r"runs/([^/]+)/checkpoints/step-\d+/attempt-\d+")


def hold_model(run: Run, config: JobConfig) -> bool:
    """Pins the checkpoint that a settled recipe names, for `run`; False where it was dropped.

    A run that has finished drops none any more, and its record is left as it is. What is not named
    as a run's of this store is not looked at.
    """
    found = isinstance(config, EvaluationConfig) and _CHECKPOINT.fullmatch(config.model)
    if not found:
        return True
    folder = run.root.sub(found[0])
    if open_run(run.root, found[1]).record.exists("result.json"):
        return folder.exists(SEAL)
    return pin(folder, run.id)


def settle_again(dropped: Prepared, prepare: Callable[[], Prepared]) -> Prepared:
    """A job prepared anew, as the checkpoint it was settled on has been dropped meanwhile.

    Raises UserError where the recipe names just that one.
    """
    prepared = prepare()
    if prepared.config == dropped.config:
        raise UserError(
            "the checkpoint that the recipe names is not committed",
            expected="a committed checkpoint, or a run, of which the newest one is taken",
            mend="Try model=RUN",
        )
    return prepared


def needs_model(root: Store, holder: str) -> bool:
    """Whether the run that has pinned a checkpoint may still read it."""
    record = open_run(root, holder).record
    return record.exists("spec.yaml") and not record.exists("result.json")
