"""Carries out `probe`: features first, then one trial of Ray Tune for each layer of each subject.

A trial puts its rows into the run's record before it reports, so a sweep that was interrupted goes
on by passing over the trials whose rows are there. Nothing of Tune's own state is kept or read.
"""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from igpt.data import Dataset, open_dataset
from igpt.errors import DataCorrupt, IgptError, Unreachable, UserError
from igpt.evaluation import (
    ProbeRow,
    Subset,
    open_features,
    probe_layer,
    raw_pixels,
    rows_from_json,
    rows_to_json,
    select,
    split_subset,
)
from igpt.jobs.context import Context
from igpt.jobs.entries.common import dataset_of, pick_device
from igpt.jobs.entries.features import load_subject, make_features
from igpt.jobs.explaining import explain
from igpt.jobs.features import SPLITS
from igpt.jobs.references import open_reference
from igpt.runs.failures import FailureClass
from igpt.runs.record import run_at
from igpt.storage.patience import insist
from igpt.sweeps.probe import ProbeConfig
from igpt.sweeps.ray_tune import run_trials

log = logging.getLogger("igpt")

_LAYERS = "probe/layers"  # of the run's record

#: What is raised for a trial's failure, by its class; the first explains more than the last.
_RAISED: dict[FailureClass | None, type[Exception]] = {
    FailureClass.USER_ERROR: UserError,
    FailureClass.CORRUPT: DataCorrupt,
    FailureClass.STORAGE: Unreachable,
    FailureClass.OUT_OF_MEMORY: MemoryError,
}


@dataclass(frozen=True)
class Trial:
    """One layer of one subject: what a worker of Ray needs to know, as plain values."""

    subject: str
    layer: int
    features: str | None  # where in the store the subject's features are; None: raw pixels
    data: str  # a settled reference
    run: str  # its address
    l2: tuple[float, ...]
    budgets: tuple[Any, ...]
    seeds: tuple[int, ...]

    @property
    def key(self) -> str:
        """Where its rows go, in the folder of the run's layers."""
        return f"{self.subject.replace(' ', '-')}-{self.layer:03d}.json"


def run(config: ProbeConfig, context: Context) -> dict[str, Any]:
    """Runs the sweep; the result holds the selections, probe/ in the run's record every row."""
    if context.rank != 0:  # Ray spreads the work, not the launcher
        return {}
    data = dataset_of(context, config.data or "", context.run.spec().inputs["data"])
    places = _features(config, context, data)
    trials = _trials(config, context, places)
    results = context.run.record.sub(_LAYERS)
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


def run_trial(trial: Trial) -> None:
    """Fits every L2, budget and seed of one layer, on one thread, and keeps the rows."""
    with threadpool_limits(1):
        parts, source_order = insist(partial(_read, trial), full=False)
        rows = probe_layer(
            *parts,
            subject=trial.subject,
            layer=trial.layer,
            l2=trial.l2,
            budgets=trial.budgets,
            seeds=trial.seeds,
            source_order=source_order,
        )
    results = run_at(trial.run).record.sub(_LAYERS)
    insist(partial(results.put, trial.key, rows_to_json(rows).encode()), full=False)


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


def _read(trial: Trial) -> tuple[list[Subset], NDArray[np.int64]]:
    """The samples of each split with the trial's features, and the order of those of train."""
    root = run_at(trial.run).root
    data = open_dataset(open_reference(root, trial.data))
    if trial.features is None:
        parts = [split_subset(data, split, raw_pixels(data, split)) for split in SPLITS]
    else:
        features = open_features(root.sub(trial.features))
        parts = [split_subset(data, split, features.layer(split, trial.layer)) for split in SPLITS]
    return parts, data.source_order("train")
