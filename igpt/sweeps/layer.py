"""One trial of the probe sweep: every fit of one layer, in a worker of Ray.

It loads no torch: the features are there. A worker is up sooner, and has more memory for them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from igpt.data import open_dataset
from igpt.evaluation import (
    Subset,
    open_features,
    probe_layer,
    raw_pixels,
    rows_to_json,
    split_subset,
)
from igpt.jobs.features import SPLITS
from igpt.jobs.references import open_reference
from igpt.runs.record import run_at
from igpt.storage.patience import insist

#: The rows of each layer, in the run's record.
LAYERS = "probe/layers"


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
    results = run_at(trial.run).record.sub(LAYERS)
    insist(partial(results.put, trial.key, rows_to_json(rows).encode()), full=False)


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
