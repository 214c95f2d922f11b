"""The protocol of the linear probe: which numbers are computed, chosen and reported.

Section 3.1 of Chen et al. (ICML 2020): layer and L2 are chosen on a part of train that was held
out, here the validation split; then that part is folded back, the chosen fit is made again on train
and validation, and the test split is looked at once. Nothing is augmented.

With a budget of labels the paper does not say how it chose. Here a subset of train is drawn by
FixMatch's algorithm (`igpt.evaluation.budgets`) for each seed, over train alone and in the order of
the source; layer and L2 are those of the highest accuracy on the full validation split, averaged
over the seeds; nothing is folded back. The validation split usually has more labels than the
budget, and `Selection.chosen` says so. As FixMatch draws from train and validation together, its
algorithm is the same but the images are not.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from igpt.config import Strict
from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.evaluation.budgets import label_subset
from igpt.evaluation.logistic import LogisticPath, logistic_path

if TYPE_CHECKING:
    from igpt.data import Dataset

Budget = int | Literal["all"]


@dataclass(frozen=True, eq=False)
class Subset:
    """Labelled samples: features x float [N, d], labels y int [N]. Raises UserError otherwise."""

    x: NDArray[Any]
    y: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.shape != self.x.shape[:1] or not len(self.y):
            raise UserError(
                f"features {list(self.x.shape)} and labels {list(self.y.shape)} do not fit",
                expected="[N, d] and [N], at least one",
            )
        if self.y.min() < 0:
            raise UserError(
                f"{int((self.y < 0).sum())} of {len(self.y)} samples have no label",
                expected="a labelled data set",
                mend="A probe needs a label for each sample of train, validation and test",
            )

    def __len__(self) -> int:
        return len(self.y)


class ProbeRow(Strict):
    """One cell of the study: one layer, strength, budget and seed."""

    subject: str  # whose features: "trained", "untrained", "raw pixels"
    layer: int
    l2: float
    budget: Budget
    seed: int | None  # of the subset; None where all labels are used
    validation_labels: int  # size of the validation split
    validation_accuracy: float
    #: Only for the strength that validation prefers for this layer and budget.
    test_accuracy: float | None
    converged: bool  # of all fits behind the row
    gradient_norm: float  # the largest of them, see `LogisticPath`
    seconds: float  # a path's time in equal shares, and the time of the row's own refit


class Selection(Strict):
    """What is reported for one subject and budget."""

    subject: str
    budget: Budget
    layer: int
    l2: float
    validation_accuracy: float  # mean over seeds
    test_accuracy: float  # mean over seeds
    test_std: float | None  # over seeds, with ddof = 1; None for a single fit
    seeds: int  # fits that are averaged
    converged: bool
    chosen: str  # how layer and l2 were chosen


def split_subset(data: "Dataset", split: str, x: NDArray[Any]) -> Subset:
    """The samples of a split with features x float [N, d], in the data set's order.

    Raises UserError where the data has no such split, or no labels.
    """
    try:
        labels = data.labels(split)
    except NotFound as error:
        raise UserError(
            error.what,
            expected="train, validation and test",
            mend="A probe chooses on validation and reports on test: hold them out when the data "
            "is written",
        ) from None
    return Subset(x, labels)


def probe_layer(
    train: Subset,
    validation: Subset,
    test: Subset,
    *,
    subject: str,
    layer: int,
    l2: Sequence[float],
    budgets: Sequence[Budget] = ("all",),
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    source_order: NDArray[np.int64] | None = None,
) -> list[ProbeRow]:
    """All cells of one layer of one subject, by the protocol above.

    source_order: int64 [N], the place of each training sample in its source
        (`Dataset.source_order`); budgets draw in its order. None: they are in that order already.

    Raises UserError for a budget that cannot be drawn, and for one over several crops of an image,
    which a budget would count as several.
    """
    train, validation, test = (_in_float64(part) for part in (train, validation, test))
    classes = 1 + max(int(part.y.max()) for part in (train, validation, test))
    if not seeds and any(budget != "all" for budget in budgets):
        raise UserError("a budget of labels needs seeds", expected="at least one, as in (1, 2, 3)")
    if source_order is None:
        source_order = np.arange(len(train))

    rows: list[ProbeRow] = []
    for budget in budgets:
        if budget == "all":
            fits = [_fit(None, train, validation, l2, classes)]
        else:
            fits = [
                _fit(seed, _drawn(train, source_order, budget, seed), validation, l2, classes)
                for seed in seeds
            ]
        means = [_mean(float(fit.accuracy[place]) for fit in fits) for place in range(len(l2))]
        best = max(range(len(l2)), key=lambda place: (means[place], l2[place]))
        for fit in fits:
            started = time.perf_counter()
            final = fit.path.only(best)
            if budget == "all":
                final = logistic_path(*_joined(train, validation), [l2[best]], classes=classes)
            tested = float(final.accuracy(test.x, test.y)[0])
            refit = time.perf_counter() - started
            for place, strength in enumerate(l2):
                is_best = place == best
                norm = float(fit.path.gradient_norm[place])
                rows.append(
                    ProbeRow(
                        subject=subject,
                        layer=layer,
                        l2=strength,
                        budget=budget,
                        seed=fit.seed,
                        validation_labels=len(validation),
                        validation_accuracy=float(fit.accuracy[place]),
                        test_accuracy=tested if is_best else None,
                        converged=bool(
                            fit.path.converged[place] and (final.converged[0] or not is_best)
                        ),
                        gradient_norm=max(norm, float(final.gradient_norm[0])) if is_best else norm,
                        seconds=fit.seconds + (refit if is_best else 0.0),
                    )
                )
    return rows


def select(rows: Sequence[ProbeRow]) -> list[Selection]:
    """The best layer and strength for each subject and budget, in the order of the rows.

    By validation accuracy, averaged over seeds; of equals the larger strength, then the lower
    layer. No test accuracy is looked at to choose. Raises UserError where the cells of a subject
    and budget were not all made with the same seeds.
    """
    studies: dict[tuple[str, Budget], list[ProbeRow]] = {}
    for row in rows:
        studies.setdefault((row.subject, row.budget), []).append(row)
    return [_selection(study) for study in studies.values()]


def rows_to_json(rows: Sequence[ProbeRow]) -> str:
    """The rows as a JSON list, which `rows_from_json` reads back as they were."""
    return _ROWS.dump_json(list(rows)).decode()


def rows_from_json(text: str | bytes) -> list[ProbeRow]:
    """The rows in `text`. Raises DataCorrupt where it holds none."""
    try:
        return _ROWS.validate_json(text)
    except ValidationError as error:
        raise DataCorrupt(f"these are not the rows of a probe: {error}") from None


_ROWS = TypeAdapter(list[ProbeRow])


@dataclass(frozen=True, eq=False)
class _Fit:
    """One set of samples, fitted for all strengths."""

    seed: int | None
    path: LogisticPath
    accuracy: NDArray[np.float64]  # on validation, for each strength
    seconds: float  # for each strength


def _fit(
    seed: int | None, part: Subset, validation: Subset, l2: Sequence[float], classes: int
) -> _Fit:
    started = time.perf_counter()
    path = logistic_path(part.x, part.y, l2, classes=classes)
    accuracy = path.accuracy(validation.x, validation.y)
    return _Fit(seed, path, accuracy, (time.perf_counter() - started) / len(l2))


def _drawn(train: Subset, source_order: NDArray[np.int64], budget: int, seed: int) -> Subset:
    order = np.argsort(source_order)
    if (np.diff(source_order[order]) == 0).any():
        raise UserError(
            "train holds several crops of an image, so its labels cannot be counted",
            expected="one sample of each image",
            mend="Write the data with crops=1 and augment=false for probes",
        )
    places = order[label_subset(train.y[order], budget, seed)]
    return Subset(train.x[places], train.y[places])


def _selection(rows: list[ProbeRow]) -> Selection:
    """The selection among the rows of one subject and budget."""
    cells: dict[tuple[float, int], list[ProbeRow]] = {}
    for row in rows:
        cells.setdefault((row.l2, -row.layer), []).append(row)
    seeds = {tuple(sorted(str(row.seed) for row in cell)) for cell in cells.values()}
    first = rows[0]
    if len(seeds) > 1:
        raise UserError(
            f"the cells of {first.subject}, {first.budget} labels, were not all made with the same "
            f"seeds",
            mend="Finish the probe before its results are compared",
        )
    means = {key: _mean(row.validation_accuracy for row in cell) for key, cell in cells.items()}
    best = cells[max(cells, key=lambda key: (means[key], key))]
    tested = [row.test_accuracy for row in best if row.test_accuracy is not None]
    if len(tested) < len(best):
        raise UserError(
            f"{first.subject}, {first.budget} labels: layer {best[0].layer} was not tested with "
            f"l2={best[0].l2:g}",
            expected="all strengths of a layer from one call of probe_layer",
        )
    return Selection(
        subject=first.subject,
        budget=first.budget,
        layer=best[0].layer,
        l2=best[0].l2,
        validation_accuracy=_mean(row.validation_accuracy for row in best),
        test_accuracy=_mean(tested),
        test_std=float(np.std(tested, ddof=1)) if len(tested) > 1 else None,
        seeds=len(best),
        converged=all(row.converged for row in best),
        chosen=_chosen(first, len(best), layers=len({row.layer for row in rows})),
    )


def _chosen(row: ProbeRow, seeds: int, layers: int) -> str:
    what = "layer and l2" if layers > 1 else "l2"
    labels = f"the full validation split ({row.validation_labels:,} labels)"
    if row.budget == "all":
        return f"{what} by accuracy on {labels}; then refit on train and validation"
    over = "one seed" if seeds == 1 else f"{seeds} seeds"
    text = f"{what} by mean accuracy over {over} on {labels}"
    if row.validation_labels > row.budget:
        text += ", which has more labels than the budget"
    return text + "; no refit"


def _mean(values: Iterable[float]) -> float:
    """The mean, the same in whatever order the values come."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _in_float64(part: Subset) -> Subset:
    """Converted once here, rather than in each fit."""
    return Subset(part.x.astype(np.float64, copy=False), part.y)


def _joined(first: Subset, second: Subset) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return np.concatenate([first.x, second.x]), np.concatenate([first.y, second.y])
