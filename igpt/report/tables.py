"""The report's tables for a terminal (rich), and its rows as CSV.

Texts from outside, such as the names of runs, are shown as they are: no markup is read in them and
no control character reaches the terminal.
"""

import csv
import io
from collections.abc import Sequence

import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from igpt.report.content import ProbeTable, Report, TrainingCurve
from igpt.report.numbers import (
    duration,
    labels,
    layer_name,
    moment,
    nats,
    percent_with_spread,
    steps,
    strength,
    whole,
)
from igpt.report.summary import SUBJECTS, budgets, by_layer, selection


def tables(report: Report) -> list[Table]:
    """One table per part of the report that is given, in the order of the page."""
    built = [_headlines(report)]
    if report.probes is not None:
        built += [_choices(report.probes), _depth(report.probes)]
    if report.training is not None:
        built.append(_losses(report.training))
    built += [_published(report), _protocol(report), _attempts(report), _provenance(report)]
    return [table for table in built if table.row_count]


def probe_csv(table: ProbeTable) -> str:
    """All fits, one a line, accuracies as fractions with every digit; empty where not measured."""
    columns = (
        "subject",
        "layer",
        "l2",
        "budget",
        "seed",
        "validation_accuracy",
        "test_accuracy",
    )
    return _csv(columns, [[getattr(row, name) for name in columns] for row in table.rows])


def training_csv(curve: TrainingCurve) -> str:
    """Both losses, one point a line."""
    rows = [["training", *point] for point in curve.training]
    return _csv(
        ("part", "step", "loss"), rows + [["validation", *point] for point in curve.validation]
    )


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table; the columns in `numbers` are set to the right."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(_plain(cell) for cell in cells))


def _plain(text: str) -> Text:
    return Text(
        "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    )


def _headlines(report: Report) -> Table:
    table = _table(_plain(report.title).plain, "", "value", "", numbers=["value"])
    table.show_header = False
    for headline in report.headlines:
        _add(table, headline.label, headline.value, headline.note)
    return table


def _choices(probes: ProbeTable) -> Table:
    numbers = ("labels", "layer", "L2", "test accuracy, %", "seeds")
    table = _table("Probe accuracy", "features", *numbers, "note", numbers=numbers)
    notes: list[str] = []  # how layer and L2 were chosen: long sentences, each said once
    for budget in budgets(probes):
        for subject in SUBJECTS:
            choice = selection(probes, subject, budget)
            if choice is not None:
                _add(
                    table,
                    subject,
                    "all" if budget == "all" else whole(budget),
                    layer_name(choice.layer),
                    strength(choice.l2),
                    percent_with_spread(choice.test_accuracy_mean, choice.test_accuracy_std),
                    str(choice.seeds),
                    _note(choice.chosen, notes),
                )
    if notes:
        said = "\n".join(f"{number}: {note}" for number, note in enumerate(notes, 1))
        table.caption, table.caption_justify = _plain(f"Chosen by\n{said}"), "left"
    return table


def _note(text: str, notes: list[str]) -> str:
    """The number of a note, which is added where it is new; nothing for an empty one."""
    if text and text not in notes:
        notes.append(text)
    return str(notes.index(text) + 1) if text else ""


def _depth(probes: ProbeTable) -> Table:
    numbers = ("layer", "L2", "validation accuracy, %", "seeds")
    budget = budgets(probes)[-1] if budgets(probes) else "all"
    table = _table(f"Accuracy by layer, {labels(budget)}", "features", *numbers, numbers=numbers)
    for subject in SUBJECTS:
        for score in by_layer(probes, subject, budget):
            _add(
                table,
                subject,
                layer_name(score.layer),
                strength(score.l2),
                percent_with_spread(score.accuracy, score.spread),
                str(score.seeds),
            )
    return table


def _losses(curve: TrainingCurve) -> Table:
    numbers = ("step", "nats per token")
    table = _table("Loss", "part", *numbers, numbers=numbers)
    for part, points in (("training", curve.training[-1:]), ("validation", curve.validation)):
        for step, loss in points:
            _add(table, part, whole(step), nats(loss))
    return table


def _published(report: Report) -> Table:
    table = _table("Published", "what", "published", "ours", "source")
    for row in report.published:
        _add(table, row.what, row.published, row.ours, row.source)
    return table


def _protocol(report: Report) -> Table:
    table = _table("How each number is made", "", "")
    table.show_header = False
    for block in report.protocol:
        _add(table, block.title, block.text)
    return table


def _attempts(report: Report) -> Table:
    table = _table(
        "Attempts", "attempt", "cluster", "started", "lasted", "steps", "outcome", "detail"
    )
    for attempt in report.attempts:
        _add(
            table,
            str(attempt.number),
            attempt.cluster,
            moment(attempt.started),
            duration(attempt.started, attempt.ended),
            steps(attempt.first_step, attempt.last_step),
            attempt.outcome,
            attempt.detail,
        )
    return table


def _provenance(report: Report) -> Table:
    table = _table("Provenance", "", "")
    table.show_header = False
    for key, value in report.provenance.items():
        _add(table, key, written(value))
    return table


def written(value: object) -> str:
    """A value of the provenance: text and numbers as they are, lists and mappings as YAML."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return yaml.safe_dump(value).removesuffix("...\n").strip()
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip()
