"""The terminal shows what the page shows, and CSV keeps every digit."""

import csv
import io
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from igpt.report import (
    Attempt,
    ProbeRow,
    ProbeTable,
    Report,
    TrainingCurve,
    probe_csv,
    tables,
    training_csv,
)
from tests.report.example import report


def shown(content: Report) -> str:
    file = io.StringIO()
    console = Console(file=file, width=150, color_system=None, force_terminal=False)
    for table in tables(content):
        console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def test_the_terminal_shows_every_table_of_the_page() -> None:
    text = shown(report())
    for title in (
        "iGPT-S on CIFAR-10",
        "Probe accuracy",
        "Accuracy by layer, all labels",
        "Loss",
        "How each number is made",
        "Attempts",
        "Provenance",
    ):
        assert f"\n{title}\n" in f"\n{text}"
    assert "Published" not in text
    for line in (
        "  Linear probe, test    78.9 %   layer 14, all labels",
        "  attempt   cluster   started                lasted       steps              outcome ",
        "  2         ray       2026-11-22 13:09 UTC   3 h 53 min   11,265 to 20,000   finished",
    ):
        assert line in text
    assert "trained          40      14   0.001         51.7 ± 3.8       5" in text


def test_a_report_of_nothing_has_no_tables() -> None:
    assert tables(replace(Report("x", report().made), probes=ProbeTable(()))) == []


def test_no_markup_and_no_control_character_of_a_text_reaches_the_terminal() -> None:
    attempt = Attempt(1, "[bold red]x[/]", "\x1b[31mred\x1b[0m", detail="a\rb\x07\u202ec")
    text = shown(Report("[red]\x1b[2J", report().made, attempts=(attempt,)))
    assert "[bold red]x[/]" in text
    assert not any(character in text for character in "\x1b\r\x07\u202e")


accuracies = st.none() | st.floats(0, 1)
fits = st.builds(
    ProbeRow,
    st.sampled_from(["trained", "untrained", "raw pixels"]),
    st.none() | st.integers(0, 60),
    st.floats(1e-12, 1e6),
    st.just("all") | st.integers(1, 10**6),
    st.integers(0, 9),
    accuracies,
    accuracies,
)


@given(st.lists(fits, max_size=20))
def test_fits_come_back_from_csv_as_they_went(rows: list[ProbeRow]) -> None:
    text = probe_csv(ProbeTable(tuple(rows)))
    back = [
        ProbeRow(
            row["subject"],
            int(row["layer"]) if row["layer"] else None,
            float(row["l2"]),
            row["budget"] if row["budget"] == "all" else int(row["budget"]),
            int(row["seed"]),
            float(row["validation_accuracy"]) if row["validation_accuracy"] else None,
            float(row["test_accuracy"]) if row["test_accuracy"] else None,
        )
        for row in csv.DictReader(io.StringIO(text))
    ]
    assert back == rows


def test_losses_come_back_from_csv_as_they_went() -> None:
    curve = TrainingCurve(((1, 6.2383246250395075), (2, 0.1 + 0.2)), ((2, 5.5),))
    rows = list(csv.DictReader(io.StringIO(training_csv(curve))))
    assert [(row["part"], int(row["step"]), float(row["loss"])) for row in rows] == [
        ("training", *curve.training[0]),
        ("training", *curve.training[1]),
        ("validation", *curve.validation[0]),
    ]
