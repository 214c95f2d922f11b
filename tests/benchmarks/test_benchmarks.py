"""Every benchmark runs, at small sizes, and tells the truth about who was faster."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from benchmarks.__main__ import SUBJECTS
from benchmarks.harness import Figure, compare
from tests.support.slurm import missing

ROOT = Path(__file__).parents[2]


def run(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize("subjects", [SUBJECTS[:2], SUBJECTS[2:]], ids=" ".join)
def test_the_last_line_is_one_document_with_every_figure(subjects: tuple[str, ...]) -> None:
    ended = run(["--quick", *subjects])
    assert ended.returncode == 0, ended.stderr
    *lines, last = ended.stdout.splitlines()
    assert all(line.isprintable() for line in lines)  # no terminal, so no control characters
    document = json.loads(last)
    assert document["quick"]
    assert tuple(document["figures"]) == subjects
    for subject, figures in document["figures"].items():
        shown = [line for line in lines if line.startswith(f"{subject}: ")]
        needed = 0 if subject == "submission" and missing() else 1
        assert len(shown) == len(figures) >= needed
        for figure in figures:
            assert 0 < figure["ratio_min"] <= figure["ratio"] <= figure["ratio_max"]
            assert len(figure["ours"]) == len(figure["theirs"])


def test_list_names_every_subject_without_measuring() -> None:
    ended = run(["--list"])
    assert [line.split()[0] for line in ended.stdout.splitlines()] == list(SUBJECTS)


def test_an_unknown_subject_is_refused_with_the_nearest_name() -> None:
    ended = run(["pallete"])
    assert ended.returncode == 2
    assert 'did you mean "palette"?' in ended.stderr


def test_a_ratio_above_one_means_that_we_are_faster() -> None:
    figure = Figure("w", "p", ours=(1.0, 2.0, 4.0), theirs=(3.0, 3.0, 3.0), amount=6, unit="images")
    assert figure.ratios == [3.0, 1.5, 0.75]
    assert (figure.ratio(), figure.spread()) == ("1.5", "0.75 to 3")
    assert figure.absolute(figure.ours) == "3 images/s"


def test_turns_alternate_and_the_first_of_each_does_not_count() -> None:
    log: list[str] = []

    def turn(name: str) -> float:
        log.append(name)
        return float(len(log))

    first, second = compare(
        "work", partial(turn, "ours"), {name: partial(turn, name) for name in "ab"}, rounds=2
    )
    assert log == ["ours", "a", "b"] * 3
    assert (first.ours, first.theirs) == ((4.0, 7.0), (5.0, 8.0))
    assert (second.ours, second.theirs) == ((4.0, 7.0), (6.0, 9.0))
