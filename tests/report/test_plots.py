"""Each plot is one well-formed SVG that shows what there is."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from igpt.report import ProbeRow, ProbeTable, TrainingCurve
from igpt.report.plots import depth_curve, heat_map, training_curve, training_tail
from tests.report.example import L2S, LAYERS, probes, training

SPACE = "{http://www.w3.org/2000/svg}"


def texts(svg: str | None) -> list[str]:
    """All texts of a drawing; fails where it is not well formed."""
    assert svg is not None
    return ["".join(item.itertext()) for item in ElementTree.fromstring(svg).iter(f"{SPACE}text")]


def rows(accuracies: dict[tuple[int, float], float | None]) -> ProbeTable:
    return ProbeTable(
        tuple(
            ProbeRow("trained", layer, l2, "all", 0, accuracy, None)
            for (layer, l2), accuracy in accuracies.items()
        )
    )


def test_the_training_curve_has_both_levels_of_ignorance() -> None:
    found = texts(training_curve(training()))
    assert "every colour alike: ln 512 = 6.238" in found
    assert "palette entropy = 5.531" in found
    assert {"training", "validation", "step", "loss, nats per token", "10,000"} <= set(found)
    assert "10,000" in texts(training_tail(training()))


def test_a_long_curve_is_drawn_in_few_points() -> None:
    random = np.random.default_rng(0)
    losses = 2 + random.random(100_000)
    curve = TrainingCurve(tuple(enumerate(losses.tolist(), 1)))
    for draw in (training_curve, training_tail):
        svg = draw(curve)
        assert svg is not None
        assert len(svg) < 40_000


@pytest.mark.parametrize(
    "curve",
    [
        TrainingCurve(((1, 6.2),)),
        TrainingCurve(((0, 6.2), (1, 6.1))),
        TrainingCurve((), ((10, 3.0),)),
        TrainingCurve(((2, 2.0), (1, math.nan)), ((2, math.inf),), colors=7),
        TrainingCurve(tuple((step, 2.0) for step in range(1, 1000))),
    ],
)
def test_short_flat_and_broken_curves_are_drawn(curve: TrainingCurve) -> None:
    assert "nats per token" in " ".join(texts(training_curve(curve)))


def test_depth_shows_all_subjects_chance_and_the_choice() -> None:
    found = texts(depth_curve(probes(), "all"))
    assert {"trained", "untrained", "raw pixels", "chance", "chosen: layer 14"} <= set(found)


def test_depth_needs_a_layer() -> None:
    table = ProbeTable((ProbeRow("raw pixels", None, 1.0, "all", 0, 0.4, 0.4),))
    assert depth_curve(table, "all") is None
    assert heat_map(table, "all") is None
    assert depth_curve(probes(), 12) is None
    assert texts(depth_curve(rows({(0, 1.0): 0.5}), "all"))


def test_every_cell_of_the_heat_map_is_readable() -> None:
    svg = heat_map(probes(), "all")
    numbers = [text for text in texts(svg) if re.fullmatch(r"\d\d\.\d", text)]
    assert len(numbers) == LAYERS * len(L2S)
    assert "80.2" in numbers
    assert {"1e-06", "0.001", "100", "0", "24"} <= set(texts(svg))
    assert svg
    assert "Chosen: layer 14 with L2 0.001, 80.2 %" in svg


def test_the_best_cell_is_boxed_where_nothing_was_chosen() -> None:
    svg = heat_map(rows({(0, 1.0): 0.3, (1, 1.0): 0.5, (1, 2.0): 0.9, (0, 2.0): None}), "all")
    assert "Best: layer 1 with L2 2, 90.0 %. The lowest of the grid is 30.0 %." in (svg or "")
    assert "–" in texts(svg)


def test_a_grid_of_one_value_is_drawn() -> None:
    assert "50.0" in texts(heat_map(rows({(3, 0.1): 0.5}), "all"))


@pytest.mark.parametrize("size", [(61, 15), (3, 2)])
def test_large_and_small_grids_are_drawn(size: tuple[int, int]) -> None:
    layers, l2s = size
    table = rows({(n, 2.0**k): n / layers for n in range(layers) for k in range(l2s)})
    assert len(texts(heat_map(table, "all"))) == layers * l2s + layers + l2s + 2


def test_drawings_take_the_colours_and_typeface_of_the_page() -> None:
    for svg in (training_curve(training()), depth_curve(probes(), "all")):
        assert svg
        assert "var(--blue, #0072b2)" in svg
        assert "font-family: var(--sans, sans-serif)" in svg
        assert "#0101" not in svg
        assert "DejaVu" not in svg
        assert "<style" not in svg
        assert "<metadata" not in svg
