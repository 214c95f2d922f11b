"""Carries out `probe`: features first, then one trial of Ray Tune for each layer of each subject.

A trial puts its rows into the run's record before it reports, so a sweep that was interrupted goes
on by passing over the trials whose rows are there. Nothing of Tune's own state is kept or read.
"""

import csv
import io
import logging
from collections.abc import Sequence
from typing import Any

from igpt.data import Dataset
from igpt.errors import DataCorrupt, IgptError, Unreachable, UserError
from igpt.evaluation import (
    ProbeRow,
    rows_from_json,
    rows_to_json,
    select,
)
from igpt.jobs.context import Context
from igpt.jobs.entries.common import dataset_of, pick_device
from igpt.jobs.entries.features import load_subject, make_features
from igpt.jobs.explaining import explain
from igpt.jobs.features import SPLITS
from igpt.runs.failures import FailureClass
from igpt.sweeps.layer import LAYERS, Trial, run_trial
from igpt.sweeps.probe import ProbeConfig
from igpt.sweeps.ray_tune import run_trials

log = logging.getLogger("igpt")

#: What is raised for a trial's failure, by its class; the first explains more than the last.
_RAISED: dict[FailureClass | None, type[Exception]] = {
    FailureClass.USER_ERROR: UserError,
    FailureClass.CORRUPT: DataCorrupt,
    FailureClass.STORAGE: Unreachable,
    FailureClass.OUT_OF_MEMORY: MemoryError,
}


def run(config: ProbeConfig, context: Context) -> dict[str, Any]:
    """Runs the sweep; the result holds the selections, probe/ in the run's record every row."""
    if context.rank != 0:  # Ray spreads the work, not the launcher
        return {}
    data = dataset_of(context, config.data or "", context.run.spec().inputs["data"])
    places = _features(config, context, data)
    trials = _trials(config, context, places)
    results = context.run.record.sub(LAYERS)
    context.keeps_pieces(results)
    there = set(results.children())
    pending = [trial for trial in trials if trial.key not in there]
    done = len(trials) - len(pending)

    def finished(trial: Trial, host: str) -> None:
        nonlocal done
        done += 1
        log.info("layer %d of %s, on %s", trial.layer, trial.subject, host)
        show()

    def show() -> None:
        # A layer may take longer than a run may be silent, and wait for CPUs that others have.
        context.sink.progress(done=done, total=len(trials), unit="layers")

    errors = run_trials(
        run_trial,
        pending,
        cpus=config.ray.cpus,
        dashboard=config.ray.dashboard,
        stop=context.stop,
        finished=finished,
        waiting=show,
    )
    context.check_stop()
    if errors:
        raise failure_of(errors, f"{len(errors)} of {len(trials)} layers failed")
    rows = [row for trial in trials for row in rows_from_json(results.get(trial.key))]
    context.run.record.put("probe/rows.json", rows_to_json(rows).encode())
    context.run.record.put("probe/rows.csv", rows_to_csv(rows).encode())
    return {
        "model": config.model,
        "data": config.data,
        "rows": len(rows),
        "selections": [selection.model_dump() for selection in select(rows)],
    }


def failure_of(errors: Sequence[Exception], what: str) -> Exception:
    """What to raise for the failures of trials: of the class of the one that explains most."""
    weights = {failure: weight for weight, failure in enumerate(_RAISED)}
    explained = [explain(error)[1:] for error in errors]
    failure, reason = min(explained, key=lambda one: weights.get(one[0], len(weights)))
    raised = _RAISED.get(failure, IgptError)
    return raised(f"{what}; the cause: {reason.strip().splitlines()[-1]}")


def rows_to_csv(rows: Sequence[ProbeRow]) -> str:
    """The rows as a table, one line each, under the names of their fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ProbeRow.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return text.getvalue()


def _features(config: ProbeConfig, context: Context, data: Dataset) -> dict[str, tuple[str, int]]:
    """For each network among the subjects, where its features are and how many layers it has."""
    networks = [subject for subject in config.subjects if subject != "raw pixels"]
    device = pick_device(config.device, context.local_rank)
    places: dict[str, tuple[str, int]] = {}
    for place, subject in enumerate(networks):
        model = load_subject(context, config.model, untrained=subject == "untrained")

        def report(done: int, total: int, place: int = place) -> None:
            context.sink.progress(
                done=place * total + done, total=len(networks) * total, unit="images"
            )

        key = make_features(
            context, model, data, SPLITS, batch=config.batch, device=device, report=report
        )
        places[subject] = (key, model.config.layers + 1)
    return places


def _trials(
    config: ProbeConfig, context: Context, places: dict[str, tuple[str, int]]
) -> list[Trial]:
    trials = []
    for subject in config.subjects:
        features, count = places.get(subject, (None, 1))
        layers = range(count) if config.layers == "all" or features is None else config.layers
        trials += [
            Trial(
                subject=subject,
                layer=layer,
                features=features,
                data=config.data or "",
                run=context.run.uri,
                l2=tuple(config.l2),
                budgets=tuple(config.budgets),
                seeds=tuple(config.seeds),
            )
            for layer in layers
        ]
    return trials
