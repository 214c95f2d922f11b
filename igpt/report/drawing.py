"""Matplotlib figures as SVG text that belongs to the page around it.

Colours are CSS variables of the page, so that one drawing serves light, dark and print; text stays
text, in the page's typeface; names of elements begin with the drawing's own, so that several fit
on a page. The same figure gives the same text every time.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib needs real colours; each of these stands for a variable and appears nowhere else.
INK, MUTED, RULE = "#010101", "#010102", "#010103"
BLUE, ORANGE, GREEN, PAPER = "#010104", "#010105", "#010106", "#010107"

#: Each variable of the page, and its value where there is no page around. The three hues are told
#: apart by all common kinds of colour blindness (Okabe and Ito, Color Universal Design).
_VARIABLES = {
    INK: ("--ink", "#1c1c1a"),
    MUTED: ("--muted", "#62625c"),
    RULE: ("--rule", "#d9d8d2"),
    BLUE: ("--blue", "#0072b2"),
    ORANGE: ("--orange", "#c55200"),
    GREEN: ("--green", "#00795a"),
    PAPER: ("--paper", "#ffffff"),
}

_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "igpt",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


@contextmanager
def style() -> Iterator[None]:
    """The page's style, whatever the user's own says; figures are drawn and saved inside."""
    from matplotlib.style import context

    with context(_STYLE, after_reset=True):
        yield


def new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    """An empty figure, in inches, and its axes. Global state of pyplot is not touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: "Figure", name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element. `name` is its id; title and description are read aloud."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = _tidy(file.getvalue())
    text = re.sub(r'\b(id|xlink:href)="(#?)', rf'\1="\2{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    for colour, (variable, value) in _VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {value})")
    text = text.replace("'DejaVu Sans'", "var(--sans, sans-serif)")
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    head = (
        f'<svg id="{name}" class="plot" role="img" viewBox="{view.group(1)}"'
        f' aria-labelledby="{name}-title {name}-description"'
        ' style="stroke-linejoin: round; stroke-linecap: butt"'
        ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n'
        f'<desc id="{name}-description">{escape(description)}</desc>'
    )
    return head + text[text.index(">") + 1 :]


def _tidy(svg: str) -> str:
    """Matplotlib's SVG without what only a file of its own needs: a third of the size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # This rule would reach all of the page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    svg = re.sub(r'\b(d|x|y|transform)="[^"]*"', _round, svg)
    return re.sub(r"\s*\n\s*", "\n", svg).rstrip()


def _round(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point."""
    text = " ".join(attribute.group().split())
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}", text)
