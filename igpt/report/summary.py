"""What is read off a probe table: its budgets, the best L2 of each layer, the grid of layer x L2.

Means are over seeds. What was not measured (None or NaN) is left out of them.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igpt.report.content import Budget, ProbeRow, ProbeSelection, ProbeTable, Subject

SUBJECTS: tuple[Subject, ...] = ("trained", "untrained", "raw pixels")


@dataclass(frozen=True)
class LayerScore:
    """The validation accuracy of a layer at its best L2: mean and spread over the seeds."""

    layer: int | None
    l2: float
    accuracy: float
    spread: float | None  # None for a single seed
    seeds: int


@dataclass(frozen=True)
class Grid:
    """Validation accuracies [layers, l2s], mean over seeds, NaN where there is none."""

    layers: tuple[int, ...]
    l2s: tuple[float, ...]
    accuracies: NDArray[np.float64]
    best: tuple[int, int]  # row and column of the choice made, else of the highest value
    chosen: bool  # whether `best` is the choice made


def known(value: float | None) -> float | None:
    """The value, or None where it was not measured or is not finite."""
    return value if value is not None and math.isfinite(value) else None


def budgets(table: ProbeTable) -> list[Budget]:
    """The label budgets, from few to all."""
    found = {row.budget for row in table.rows} | {choice.budget for choice in table.selections}
    return sorted(found, key=lambda budget: math.inf if budget == "all" else budget)


def selection(table: ProbeTable, subject: Subject, budget: Budget) -> ProbeSelection | None:
    """The choice made for a subject and budget."""
    for choice in table.selections:
        if (choice.subject, choice.budget) == (subject, budget):
            return choice
    return None


def by_layer(table: ProbeTable, subject: Subject, budget: Budget) -> list[LayerScore]:
    """Each layer at its best L2, in the order of the layers. The stronger L2 wins a tie."""
    scores: dict[int | None, LayerScore] = {}
    for (layer, l2), accuracies in sorted(
        _accuracies(table.rows, subject, budget).items(),
        key=lambda item: (-1 if item[0][0] is None else item[0][0], item[0][1]),
    ):
        score = LayerScore(
            layer, l2, float(np.mean(accuracies)), spread(accuracies), len(accuracies)
        )
        if layer not in scores or score.accuracy >= scores[layer].accuracy:
            scores[layer] = score
    return list(scores.values())


def grid(table: ProbeTable, subject: Subject, budget: Budget) -> Grid | None:
    """Accuracy by layer and L2, or None where nothing was measured."""
    found = {
        (layer, l2): accuracies
        for (layer, l2), accuracies in _accuracies(table.rows, subject, budget).items()
        if layer is not None
    }
    if not found:
        return None
    layers = tuple(sorted({layer for layer, _ in found}))
    l2s = tuple(sorted({l2 for _, l2 in found}))
    accuracies = np.full((len(layers), len(l2s)), np.nan)
    for (layer, l2), values in found.items():
        accuracies[layers.index(layer), l2s.index(l2)] = np.mean(values)
    choice = selection(table, subject, budget)
    if choice is not None and choice.layer in layers and choice.l2 in l2s:
        return Grid(
            layers, l2s, accuracies, (layers.index(choice.layer), l2s.index(choice.l2)), True
        )
    row, column = np.unravel_index(np.nanargmax(accuracies), accuracies.shape)
    return Grid(layers, l2s, accuracies, (int(row), int(column)), False)


def spread(values: Iterable[float]) -> float | None:
    """The sample standard deviation, or None for fewer than two values."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _accuracies(
    rows: Iterable[ProbeRow], subject: Subject, budget: Budget
) -> dict[tuple[int | None, float], list[float]]:
    """Validation accuracies of all seeds by layer and L2."""
    found: dict[tuple[int | None, float], list[float]] = defaultdict(list)
    for row in rows:
        accuracy = known(row.validation_accuracy)
        if (row.subject, row.budget) == (subject, budget) and accuracy is not None:
            found[row.layer, row.l2].append(accuracy)
    return found
