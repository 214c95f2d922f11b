"""What is read off a probe table, and how numbers are written."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from igpt.report import ProbeRow, ProbeSelection, ProbeTable, numbers
from igpt.report.content import Budget
from igpt.report.summary import LayerScore, budgets, by_layer, grid, selection

START = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def fit(
    layer: int | None,
    l2: float,
    accuracy: float | None,
    *,
    seed: int = 0,
    budget: Budget = "all",
) -> ProbeRow:
    subject = "raw pixels" if layer is None else "trained"
    return ProbeRow(subject, layer, l2, budget, seed, accuracy, None)


def test_budgets_go_from_few_to_all() -> None:
    table = ProbeTable(tuple(fit(0, 1.0, 0.5, budget=budget) for budget in ("all", 4000, 40, 250)))
    assert budgets(table) == [40, 250, 4000, "all"]
    assert budgets(ProbeTable(())) == []


def test_each_layer_is_taken_at_its_best_l2_over_the_seeds() -> None:
    table = ProbeTable(
        (
            fit(1, 0.1, 0.9),
            fit(1, 0.1, 0.1, seed=1),
            fit(1, 1.0, 0.6),
            fit(1, 1.0, 0.7, seed=1),
            fit(0, 1.0, 0.4),
            fit(0, 0.1, None),
            fit(0, 10.0, float("nan")),
            fit(0, 0.1, 0.8, budget=40),
            fit(None, 1.0, 0.3),
        )
    )
    low, high = by_layer(table, "trained", "all")
    assert low == LayerScore(0, 1.0, 0.4, None, 1)
    assert (high.layer, high.l2, high.seeds) == (1, 1.0, 2)
    assert high.accuracy == pytest.approx(0.65)
    assert high.spread == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert by_layer(table, "raw pixels", "all") == [LayerScore(None, 1.0, 0.3, None, 1)]


def test_of_equals_the_stronger_l2_is_taken() -> None:
    table = ProbeTable((fit(0, 1.0, 0.5), fit(0, 0.1, 0.5)))
    assert by_layer(table, "trained", "all")[0].l2 == 1.0


def test_the_grid_marks_the_choice_made_before_the_highest() -> None:
    found = (fit(2, 1.0, 0.5), fit(2, 10.0, 0.6), fit(5, 10.0, 0.7))
    plain = grid(ProbeTable(found), "trained", "all")
    assert plain is not None
    assert (plain.layers, plain.l2s) == ((2, 5), (1.0, 10.0))
    np.testing.assert_array_equal(plain.accuracies, [[0.5, 0.6], [np.nan, 0.7]])
    assert (plain.best, plain.chosen) == ((1, 1), False)
    choice = ProbeSelection("trained", "all", 2, 10.0, 0.59, None, 1, "")
    table = ProbeTable(found, (choice,))
    chosen = grid(table, "trained", "all")
    assert chosen is not None
    assert (chosen.best, chosen.chosen) == ((0, 1), True)
    assert selection(table, "trained", "all") is choice
    assert selection(table, "untrained", "all") is None
    assert grid(table, "untrained", "all") is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.percent(0.7861), "78.6"),
        (numbers.percent(None), "–"),
        (numbers.percent(float("nan")), "–"),
        (numbers.percent(1.0), "100.0"),
        (numbers.percent_with_spread(0.732, 0.015), "73.2 ± 1.5"),
        (numbers.percent_with_spread(0.732, None), "73.2"),
        (numbers.percent_with_spread(0.732, float("nan")), "73.2"),
        (numbers.percent_with_spread(None, 0.1), "–"),
        (numbers.nats(2.08951), "2.0895"),
        (numbers.nats(float("inf")), "–"),
        (numbers.strength(1e-5), "1e-05"),
        (numbers.strength(1.0), "1"),
        (numbers.labels("all"), "all labels"),
        (numbers.labels(4000), "4,000 labels"),
        (numbers.steps(1, 20_000), "1 to 20,000"),
        (numbers.steps(None, None), "–"),
        (numbers.moment(START.astimezone()), "2026-11-22 08:00 UTC"),
        (numbers.moment(None), "–"),
        (numbers.duration(START, START), "0 s"),
        (numbers.duration(START, START + timedelta(seconds=59)), "59 s"),
        (numbers.duration(START, START + timedelta(minutes=61)), "1 h 1 min"),
        (numbers.duration(START, START + timedelta(days=2, minutes=5)), "2 d"),
        (numbers.duration(START, START + timedelta(days=2, hours=3)), "2 d 3 h"),
        (numbers.duration(START, START - timedelta(days=1)), "0 s"),
        (numbers.duration(START, None), "–"),
    ],
)
def test_numbers_are_written_the_same_everywhere(written: str, expected: str) -> None:
    assert written == expected
