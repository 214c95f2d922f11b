"""The plots of the report, each as an `<svg>` element for the page (`igpt.report.drawing`)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from igpt.report.content import Budget, ProbeTable, Subject, TrainingCurve
from igpt.report.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, new_figure, style, to_svg
from igpt.report.numbers import labels, layer_name, nats, percent, strength, whole
from igpt.report.summary import Grid, LayerScore, by_layer, grid, known, selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 6.2  # inches, of which a page of 700 pixels makes a text size of 15
_STRETCHES = 200  # a line of more points is drawn as the means of as many stretches

_LOOKS: dict[Subject, dict[str, Any]] = {
    "trained": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "untrained": {"color": ORANGE, "linestyle": "--", "marker": "s"},
    "raw pixels": {"color": GREEN, "linestyle": "-."},
}


def training_curve(curve: TrainingCurve) -> str | None:
    """Loss over all steps, on a logarithmic axis, with the two losses of ignorance."""
    training, validation = _measured(curve.training), _measured(curve.validation)
    if not len(training) and not len(validation):
        return None
    with style():
        figure, axes = new_figure(_WIDTH, 3.3)
        axes.set_xscale("log")
        _draw_losses(axes, training, validation)
        axes.xaxis.set_major_formatter(lambda step, _: whole(round(step)))
        guess, entropy = math.log(curve.colors), known(curve.palette_entropy)
        _draw_level(axes, guess, f"every colour alike: ln {curve.colors} = {guess:.3f}", "--")
        if entropy is not None:
            _draw_level(axes, entropy, f"palette entropy = {entropy:.3f}", ":")
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, max(top, guess + 0.12 * (top - bottom)))
        return to_svg(figure, "training-curve", "Loss by step", _tell_losses(training, validation))


def training_tail(curve: TrainingCurve) -> str | None:
    """Loss over the second half of the steps, where the last of the gain is read off."""
    training, validation = _measured(curve.training), _measured(curve.validation)
    last = max((part[-1, 0] for part in (training, validation) if len(part)), default=0.0)
    training, validation = (part[part[:, 0] >= last / 2] for part in (training, validation))
    if len(training) + len(validation) < 8:
        return None
    with style():
        figure, axes = new_figure(_WIDTH, 2.8)
        _draw_losses(axes, training, validation)
        axes.xaxis.set_major_formatter(lambda step, _: whole(round(step)))
        return to_svg(
            figure,
            "training-tail",
            "Loss by step in the second half",
            _tell_losses(training, validation),
        )


def depth_curve(table: ProbeTable, budget: Budget) -> str | None:
    """Validation accuracy by layer: the trained network, the untrained one, and raw pixels."""
    scores = {subject: by_layer(table, subject, budget) for subject in _LOOKS}
    if not scores["trained"] and not scores["untrained"]:
        return None
    from matplotlib.ticker import MaxNLocator

    with style():
        figure, axes = new_figure(_WIDTH, 3.5)
        for subject, found in scores.items():
            if subject == "raw pixels":
                for score in found[:1]:
                    axes.axhline(100 * score.accuracy, label="raw pixels", **_LOOKS[subject])
            elif found:
                _draw_layers(axes, found, subject)
        if table.classes:
            _draw_level(axes, 100 / table.classes, "chance", ":")
        choice = selection(table, "trained", budget)
        for score in scores["trained"]:
            if choice is not None and score.layer == choice.layer:
                _mark_choice(axes, score)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("validation accuracy, %")
        _legend(axes)
        return to_svg(
            figure, "depth-curve", f"Probe accuracy by layer, {labels(budget)}", _tell_depth(scores)
        )


def heat_map(table: ProbeTable, budget: Budget, subject: Subject = "trained") -> str | None:
    """Validation accuracy by layer and L2 strength; the choice made, or the best, is boxed."""
    found = grid(table, subject, budget)
    if found is None:
        return None
    from matplotlib import colormaps
    from matplotlib.colors import to_hex, to_rgb
    from matplotlib.patches import Rectangle

    rows, columns = found.accuracies.shape
    size = min(9.0, 9.0 * 11 / columns)
    with style():
        figure, axes = new_figure(_WIDTH, 0.75 + 0.235 * rows)
        low, high = np.nanmin(found.accuracies), np.nanmax(found.accuracies)
        shades = (found.accuracies - low) / ((high - low) or 1.0)
        for row, column in np.ndindex(rows, columns):
            shade = float(shades[row, column])
            # cividis: its steps look even with every kind of colour vision, and in grey
            fill = to_hex(colormaps["cividis"](shade))
            ink = "black" if _luminance(to_rgb(fill)) > 0.18 else "white"
            if math.isnan(shade):
                fill, ink = "none", MUTED
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=fill, edgecolor=PAPER)
            )
            axes.text(
                column,
                row,
                percent(float(found.accuracies[row, column])),
                ha="center",
                va="center_baseline",
                fontsize=size,
                color=ink,
            )
        for colour, width in ((PAPER, 4.0), (INK, 2.0)):
            row, column = found.best
            axes.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width
                )
            )
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_xticks(range(columns), [strength(l2) for l2 in found.l2s])
        axes.set_yticks(range(rows), [layer_name(layer) for layer in found.layers])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.set_xlabel("L2 strength")
        axes.set_ylabel("layer")
        return to_svg(
            figure,
            "heat-map",
            f"Validation accuracy by layer and L2 strength, {labels(budget)}",
            _tell_grid(found),
        )


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an RGB colour in [0, 1], as WCAG defines it."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _measured(points: Sequence[tuple[int, float]]) -> NDArray[np.float64]:
    """The finite points [N, 2] with steps of 1 and more, in the order of the steps."""
    array = np.array(sorted(points), dtype=np.float64).reshape(-1, 2)
    return array[np.isfinite(array[:, 1]) & (array[:, 0] >= 1)]


def _draw_losses(
    axes: "Axes", training: NDArray[np.float64], validation: NDArray[np.float64]
) -> None:
    if len(training):
        stretches = _stretches(axes, training)
        means = np.array([stretch.mean(axis=0) for stretch in stretches])
        if len(training) > len(means):
            ends = [(part[:, 1].min(), part[:, 1].max()) for part in stretches]
            lowest, highest = np.array(ends).T
            axes.fill_between(means[:, 0], lowest, highest, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(*means.T, color=BLUE, linewidth=1.5, label="training")
    if len(validation):
        axes.plot(
            *validation.T,
            color=ORANGE,
            linewidth=1.5,
            marker="o",
            markersize=5,
            markeredgecolor=PAPER,
            label="validation",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    _legend(axes)


def _stretches(axes: "Axes", points: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The points in stretches of equal width on the axis."""
    if len(points) <= _STRETCHES:
        return [points[n : n + 1] for n in range(len(points))]
    places = np.log(points[:, 0]) if axes.get_xscale() == "log" else points[:, 0]
    edges = np.linspace(places[0], places[-1], _STRETCHES + 1)[1:-1]
    return [part for part in np.split(points, np.searchsorted(places, edges)) if len(part)]


def _draw_level(axes: "Axes", value: float, name: str, line: str) -> None:
    """A horizontal line with its name at the right end."""
    axes.axhline(value, color=MUTED, linestyle=line, linewidth=1.2)
    axes.annotate(
        name,
        (0.995, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        color=MUTED,
    )


def _draw_layers(axes: "Axes", scores: list[LayerScore], subject: Subject) -> None:
    layers = [score.layer for score in scores if score.layer is not None]
    accuracies = np.array([score.accuracy for score in scores if score.layer is not None])
    spreads = np.array([score.spread or 0.0 for score in scores if score.layer is not None])
    look = _LOOKS[subject]
    if spreads.any():
        axes.fill_between(
            layers,
            100 * (accuracies - spreads),
            100 * (accuracies + spreads),
            color=look["color"],
            alpha=0.2,
            linewidth=0,
        )
    axes.plot(layers, 100 * accuracies, label=subject, markersize=5, markeredgecolor=PAPER, **look)


def _mark_choice(axes: "Axes", score: LayerScore) -> None:
    layer, accuracy = score.layer or 0, 100 * score.accuracy
    axes.plot(
        [layer],
        [accuracy],
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=1.4,
    )
    axes.annotate(
        f"chosen: layer {layer}",
        (layer, accuracy),
        xytext=(0, 10),
        textcoords="offset points",
        ha="center",
    )
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, max(top, accuracy + 0.15 * (top - bottom)))


def _legend(axes: "Axes") -> None:
    """Above the axes, at their left end."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        borderaxespad=0.2,
        borderpad=0,
        handlelength=2.4,
    )


def _tell_losses(training: NDArray[np.float64], validation: NDArray[np.float64]) -> str:
    parts = [
        f"The {name} loss ends at {nats(part[-1, 1])} nats per token at step "
        f"{whole(round(part[-1, 0]))}."
        for name, part in (("training", training), ("validation", validation))
        if len(part)
    ]
    return " ".join(parts)


def _tell_depth(scores: dict[Subject, list[LayerScore]]) -> str:
    parts = []
    for subject, found in scores.items():
        if found:
            best = max(found, key=lambda score: score.accuracy)
            at = "" if best.layer is None else f" at layer {best.layer}"
            parts.append(f"{subject}: at best {percent(best.accuracy)} %{at}.")
    return " ".join(parts).capitalize()


def _tell_grid(found: Grid) -> str:
    row, column = found.best
    return (
        f"{'Chosen' if found.chosen else 'Best'}: layer {found.layers[row]} with L2 "
        f"{strength(found.l2s[column])}, {percent(found.accuracies[row, column])} %. The lowest of "
        f"the grid is {percent(float(np.nanmin(found.accuracies)))} %."
    )
