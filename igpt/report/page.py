"""The page: everything of a report in one HTML file that opens without a network.

The template (`page.html.j2`) escapes every text; only our own drawings go in as they are. The page
forbids itself, by its content security policy, to load or run anything.
"""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from igpt.report import numbers, plots
from igpt.report.content import Budget, Completion, ImageGrid, ProbeTable, Report, Subject
from igpt.report.images import enlarge, hatch, png_address
from igpt.report.summary import SUBJECTS, budgets, by_layer, selection
from igpt.report.tables import written


@dataclass(frozen=True)
class _Cell:
    """A cell of the budget table."""

    accuracy: str
    details: tuple[str, ...]
    note: int | None  # number of the footnote that says how it was chosen
    best: bool  # of all features with this many labels


@dataclass(frozen=True)
class _Image:
    address: str
    name: str


@dataclass(frozen=True)
class _Completion:
    given: _Image
    made: tuple[_Image, ...]
    original: _Image


def render(report: Report) -> str:
    """The whole page. The same report gives the same text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent_with_spread", "nats", "whole", "strength", "layer_name"):
        environment.filters[name] = getattr(numbers, name)
    template = environment.get_template("page.html.j2")
    return template.render(
        report=report,
        duration=numbers.duration,
        labels=numbers.labels,
        made=numbers.moment(report.made),
        moment=numbers.moment,
        steps=numbers.steps,
        probes=_probes(report.probes) if report.probes else None,
        drawings=_drawings(report),
        samples=_grid(report.samples, "sample"),
        examples=_grid(report.examples, "example"),
        completions=[_completion(item, n) for n, item in enumerate(report.completions, 1)],
        protocol=[(block.title, _paragraphs(block.text)) for block in report.protocol],
        provenance={key: written(value) for key, value in report.provenance.items()},
        summary=_paragraphs(report.summary),
    )


def _drawings(report: Report) -> dict[str, Markup]:
    """The plots for which there is something to show."""
    drawn = {}
    if report.training:
        drawn["training"] = plots.training_curve(report.training)
        drawn["tail"] = plots.training_tail(report.training)
    if report.probes and budgets(report.probes):
        largest = budgets(report.probes)[-1]
        drawn["depth"] = plots.depth_curve(report.probes, largest)
        drawn["heat_map"] = plots.heat_map(report.probes, largest)
    # Matplotlib escapes the texts in its SVG, and ours are escaped where they are added.
    return {name: Markup(svg) for name, svg in drawn.items() if svg}  # noqa: S704


def _probes(table: ProbeTable) -> dict[str, object] | None:
    found = budgets(table)
    if not found:
        return None
    notes: list[str] = []
    rows: list[tuple[Subject, list[_Cell | None]]] = []
    for subject in SUBJECTS:
        cells = [_cell(table, subject, budget, notes) for budget in found]
        if any(cells):
            rows.append((subject, cells))
    scores = {subject: by_layer(table, subject, found[-1]) for subject in SUBJECTS}
    return {
        "budgets": found,
        "rows": rows,
        "notes": notes,
        "scores": [(subject, score) for subject in SUBJECTS for score in scores[subject]],
        "choice": selection(table, "trained", found[-1]),
    }


def _cell(table: ProbeTable, subject: Subject, budget: Budget, notes: list[str]) -> _Cell | None:
    """The cell, with its footnote added to `notes` unless it is there already."""
    choice = selection(table, subject, budget)
    if choice is None:
        return None
    if choice.chosen and choice.chosen not in notes:
        notes.append(choice.chosen)
    where = "" if choice.layer is None else f"layer {choice.layer} · "
    return _Cell(
        numbers.percent_with_spread(choice.test_accuracy_mean, choice.test_accuracy_std),
        (
            f"{where}L2 {numbers.strength(choice.l2)}",
            "1 seed" if choice.seeds == 1 else f"{choice.seeds} seeds",
        ),
        notes.index(choice.chosen) + 1 if choice.chosen else None,
        best=choice.test_accuracy_mean is not None
        and choice.test_accuracy_mean == _highest(table, budget),
    )


def _highest(table: ProbeTable, budget: Budget) -> float | None:
    """The highest test accuracy with a budget, whoever has it; None where there is but one."""
    choices = [selection(table, subject, budget) for subject in SUBJECTS]
    known = [
        one.test_accuracy_mean for one in choices if one and one.test_accuracy_mean is not None
    ]
    return max(known) if len(known) > 1 else None


def _grid(grid: ImageGrid | None, kind: str) -> list[_Image]:
    if grid is None:
        return []
    names = grid.names or tuple(f"{kind} {n}" for n in range(1, len(grid.images) + 1))
    return [
        _Image(png_address(enlarge(image)), name)
        for image, name in zip(grid.images, names, strict=True)
    ]


def _completion(item: Completion, number: int) -> _Completion:
    name = item.name or f"image {number}"
    return _Completion(
        _Image(png_address(hatch(item.original, item.hidden)), f"{name}, as the model saw it"),
        tuple(
            _Image(png_address(enlarge(image)), f"{name}, completion {n}")
            for n, image in enumerate(item.completions, 1)
        ),
        _Image(png_address(enlarge(item.original)), f"{name}, the original"),
    )


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]
