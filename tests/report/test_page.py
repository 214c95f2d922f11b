"""The page is whole, self-contained, accessible, and says nothing of what it was not given."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from igpt.report import (
    Attempt,
    Completion,
    Headline,
    ImageGrid,
    ProbeRow,
    ProbeSelection,
    ProbeTable,
    Protocol,
    PublishedRow,
    Report,
    TrainingCurve,
    render,
)
from tests.report.example import picture, report

MADE = datetime(2026, 11, 24, tzinfo=UTC)
WHOLE = report()
VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text; refuses what is badly nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # the element around, the text
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def each(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text_in(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]


@pytest.fixture(scope="module")
def html() -> str:
    return render(WHOLE)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def values(page: Page, name: str) -> Iterator[str]:
    return (attributes[name] for _, attributes in page.elements if name in attributes)


def test_the_page_has_its_parts_in_order(page: Page) -> None:
    outline = [
        (name, text) for name, text in page.texts if name in ("title", "h1", "h2", "h3", "summary")
    ]
    outline = [
        item for item in outline if not item[1].startswith(("Loss by", "Probe acc", "Valid"))
    ]
    assert outline == [
        ("title", "iGPT-S on CIFAR-10"),
        ("h1", "iGPT-S on CIFAR-10"),
        ("h2", "Linear probes"),
        ("summary", "Accuracy by layer, as numbers"),
        ("h2", "Pretraining"),
        ("h2", "Samples"),
        ("h2", "Half-image completions"),
        ("h2", "Data"),
        ("h2", "How each number is made"),
        ("h3", "Linear probe"),
        ("h3", "Loss"),
        ("h2", "Attempts"),
        ("h2", "Provenance"),
    ]
    assert [attributes["id"] for attributes in page.each("svg")] == [
        "depth-curve",
        "heat-map",
        "training-curve",
        "training-tail",
    ]
    assert len(page.each("img")) == 24 + 4 * 7 + 16
    assert page.text_in("a") == page.text_in("h2")


def test_the_numbers_are_on_the_page(html: str, page: Page) -> None:
    cells = page.text_in("td")
    for expected in ("51.7 ± 3.8", "78.9", "11,265 to 20,000", "5 h 5 min", "2026-11-22 08:00 UTC"):
        assert expected in cells
    assert {"40 labels", "250 labels", "4,000 labels", "all labels"} <= set(page.text_in("th"))
    assert {"layer 14 · L2 0.001", "5 seeds", "1 seed"} <= set(page.text_in("small"))
    assert "samples:\n  train: 45000" in "\n".join(page.text_in("pre"))
    assert len(page.text_in("li")) == 2  # how layer and L2 were chosen, each said once
    assert "palette entropy = 5.531" in html
    assert "ln 512 = 6.238" in html


def test_nothing_is_loaded_from_elsewhere(html: str, page: Page) -> None:
    assert set(re.findall(r"https?://[^\s\"'<)]*", html)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert all(value.startswith("data:image/png;base64,") for value in values(page, "src"))
    assert all(value.startswith("#") or value == "data:," for value in values(page, "href"))
    assert all(value.startswith("#") for value in values(page, "xlink:href"))
    assert not page.each("script")
    assert "@import" not in html
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", html))
    policies = [item for item in page.each("meta") if item.get("http-equiv")]
    assert policies[0]["content"].startswith("default-src 'none'; img-src data:")


def test_names_within_the_page_are_unique_and_lead_somewhere(html: str, page: Page) -> None:
    names = list(values(page, "id"))
    assert len(names) == len(set(names))
    wanted = {value[1:] for value in values(page, "href") if value.startswith("#")}
    wanted |= {value[1:] for value in values(page, "xlink:href")}
    wanted |= {name for value in values(page, "aria-labelledby") for name in value.split()}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", html))
    assert wanted <= set(names)


def test_pictures_and_plots_can_be_read_aloud(page: Page) -> None:
    assert all(image["alt"] for image in page.each("img"))
    assert page.each("html")[0]["lang"] == "en"
    assert all(plot["role"] == "img" for plot in page.each("svg"))
    descriptions = page.text_in("desc")
    assert any("Chosen: layer 14 with L2 0.001, 80." in text for text in descriptions)
    assert any("validation loss ends at 2.0605" in text for text in descriptions)


def test_the_same_report_gives_the_same_page(html: str) -> None:
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert render(report()) == html
        assert matplotlib.rcParams["font.size"] == 30
    program = (
        "import hashlib; from igpt.report import render; from tests.report.example import report;"
        "print(hashlib.sha256(render(report()).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == hashlib.sha256(html.encode()).hexdigest()


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; background: url(//example.org)",
    "</pre></style></title><script>alert(1)</script>",
    "{{ 7 * 7 }}{% include 'page.css' %}",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_from_outside_are_only_texts(name: str) -> None:
    hidden = np.ones((32, 32), dtype=bool)
    pictures = np.stack([picture(0)])
    text = render(
        replace(
            WHOLE,
            title=name,
            summary=name,
            runs=(name,),
            headlines=(Headline(name, name, name),),
            probes=ProbeTable(
                (),
                tuple(
                    replace(choice, chosen=f"{name} {choice.budget}")
                    for choice in WHOLE.probes.selections
                ),
            ),
            training=None,
            samples=ImageGrid(pictures, (name,), name),
            examples=ImageGrid(pictures, (name,), name),
            completions=(Completion(picture(1), hidden, pictures, name),),
            published=(PublishedRow(name, name, name, name),),
            protocol=(Protocol(name, name),),
            provenance={name: {name: [name]}},
            attempts=(Attempt(1, name, name, detail=name),),
        )
    )
    page = Page(text)
    assert not page.each("script")
    assert not list(values(page, "onerror"))
    assert len(page.each("img")) == 5
    assert page.text_in("title")[0] == page.text_in("h1")[0] == name
    assert all(image["alt"].startswith(name) for image in page.each("img"))
    assert page.text_in("pre") == [page.text_in("pre")[0]]
    assert all(part in page.text_in("pre")[0] for part in name.split("'")[:1])


def test_a_report_of_nothing_is_a_title() -> None:
    page = Page(render(Report("Empty", MADE)))
    assert page.text_in("h1") == ["Empty"]
    for tag in ("h2", "nav", "svg", "img", "table", "dl", "section", "ol"):
        assert not page.each(tag), tag


PARTS = {
    "Linear probes": {"probes": WHOLE.probes},
    "Pretraining": {"training": WHOLE.training},
    "Samples": {"samples": WHOLE.samples},
    "Half-image completions": {"completions": WHOLE.completions},
    "Data": {"examples": WHOLE.examples},
    "Published numbers": {"published": (PublishedRow("CIFAR-10", "96.3", "78.9", "V2"),)},
    "How each number is made": {"protocol": WHOLE.protocol},
    "Attempts": {"attempts": WHOLE.attempts},
    "Provenance": {"provenance": WHOLE.provenance},
}


@pytest.mark.parametrize("heading", PARTS)
def test_each_part_stands_alone(heading: str) -> None:
    page = Page(render(Report("One", MADE, **PARTS[heading])))
    assert page.text_in("h2") == [heading]
    assert len(page.each("section")) == 1
    assert not page.each("nav")


@pytest.mark.parametrize(
    "part",
    [
        {"probes": ProbeTable(())},
        {"training": TrainingCurve(())},
        {"training": TrainingCurve(((1, float("nan")),), ((1, float("inf")),))},
        {"samples": ImageGrid(np.zeros((0, 4, 4, 3), dtype=np.uint8))},
    ],
)
def test_a_part_without_content_leaves_no_heading(part: dict[str, object]) -> None:
    page = Page(render(Report("Nothing", MADE, **part)))
    assert not page.each("h2")
    assert not page.each("section")
    assert not page.each("svg")


def test_what_is_not_a_number_is_shown_as_missing() -> None:
    nan = float("nan")
    rows = tuple(
        replace(row, validation_accuracy=nan if row.layer == 14 else row.validation_accuracy)
        for row in WHOLE.probes.rows
    )
    choices = tuple(
        replace(choice, test_accuracy_mean=nan, test_accuracy_std=nan)
        for choice in WHOLE.probes.selections
    )
    curve = TrainingCurve(
        tuple((step, nan if step % 100 == 0 else loss) for step, loss in WHOLE.training.training),
        ((1000, nan), (2000, 2.5)),
        palette_entropy=nan,
    )
    html = render(replace(WHOLE, probes=ProbeTable(rows, choices), training=curve))
    page = Page(html)
    assert "nan" not in " ".join(text.lower() for _, text in page.texts if len(text) < 40).split()
    assert "–" in page.text_in("td")
    assert len(page.each("svg")) == 4
    assert "palette entropy =" not in html


def test_completions_may_be_of_different_number_or_none() -> None:
    hidden = np.zeros((8, 8), dtype=bool)
    hidden[4:] = True
    one = Completion(picture(1, 8), hidden, np.stack([picture(2, 8)]))
    none = Completion(picture(1, 8), hidden, np.zeros((0, 8, 8, 3), dtype=np.uint8))
    assert len(Page(render(Report("x", MADE, completions=(one, none)))).each("img")) == 5
    assert len(Page(render(Report("x", MADE, completions=(none,)))).each("img")) == 2


def test_content_of_another_form_is_refused() -> None:
    good = picture(0)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageGrid(good)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageGrid(np.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="2 names for 1 images"):
        ImageGrid(good[None], ("a", "b"))
    with pytest.raises(ValueError, match="expected bool"):
        Completion(good, np.zeros((4, 4), dtype=bool), good[None])
    with pytest.raises(ValueError, match="has no zone"):
        Report("x", datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="has no zone"):
        Attempt(1, "local", "finished", started=datetime(2026, 1, 1))


def test_the_report_is_imported_without_drawing_anything() -> None:
    program = (
        "import sys, igpt.report; sys.exit(any(m in sys.modules for m in ('matplotlib', 'PIL',"
        " 'torch', 'ray')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_best_features_of_each_budget_are_marked_whoever_has_them() -> None:
    choices = [
        ProbeSelection(subject, budget, 1, 0.1, accuracy, None, 1, "")
        for budget, accuracies in ((40, (0.16, 0.12, 0.22)), ("all", (0.67, 0.34, 0.27)))
        for subject, accuracy in zip(
            ("trained", "untrained", "raw pixels"), accuracies, strict=True
        )
    ]
    rows = tuple(
        ProbeRow(one.subject, one.layer, one.l2, one.budget, 0, 0.5, 0.5) for one in choices
    )
    page = render(replace(report(), probes=ProbeTable(rows, tuple(choices))))
    marked = re.findall(r'class="number best">([\d.]+)', page)
    assert marked == ["67.0", "22.0"]
