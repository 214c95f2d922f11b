"""How a figure is measured: we and a peer do the same work by turns, in the same process.

A busy machine slows whoever has the turn. So each round gives a ratio of its own, of two times
taken one right after the other, and a figure is the median of the ratios, with the least and the
greatest beside it. A ratio says how many times as fast as the peer we are: below 1 we are slower.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

#: One turn: does the work and returns the seconds that it took.
Turn = Callable[[], float]


@dataclass(frozen=True)
class Figure:
    """The seconds that the same work took us and a peer, round by round."""

    work: str
    peer: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    amount: int  # of `unit` in one turn
    unit: str  # plural, such as "images"; empty where a turn is one thing that takes a time

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the peer we were, round by round."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def absolute(self, seconds: tuple[float, ...]) -> str:
        """The median as a speed, or as a time where there is no unit."""
        if self.unit:
            return f"{_short(self.amount / median(seconds))} {self.unit}/s"
        return f"{_short(1000 * median(seconds))} ms"

    def spread(self) -> str:
        """The least and the greatest of the ratios."""
        return f"{_short(min(self.ratios))} to {_short(max(self.ratios))}"

    def ratio(self) -> str:
        """The median of the ratios."""
        return _short(median(self.ratios))

    def plain(self) -> dict[str, Any]:
        """The figure for the JSON document; times are in seconds."""
        return {
            "work": self.work,
            "peer": self.peer,
            "ratio": _rounded(median(self.ratios)),
            "ratio_min": _rounded(min(self.ratios)),
            "ratio_max": _rounded(max(self.ratios)),
            "ours": [_rounded(seconds) for seconds in self.ours],
            "theirs": [_rounded(seconds) for seconds in self.theirs],
            "amount": self.amount,
            "unit": self.unit,
        }


def timed(work: Callable[[], object]) -> Turn:
    """A turn that is the whole of a call."""

    def turn() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return turn


def compare(
    work: str,
    ours: Turn,
    peers: Mapping[str, Turn],
    *,
    rounds: int,
    amount: int = 1,
    unit: str = "",
    warm_up: bool = True,
) -> list[Figure]:
    """One figure for each peer: ours and every peer by turns, `rounds` times.

    warm_up: whether each has a turn before that does not count.
    """
    turns = [ours, *peers.values()]
    if warm_up:
        for turn in turns:
            turn()
    seconds = [[turn() for turn in turns] for _ in range(rounds)]
    mine, *theirs = (tuple(column) for column in zip(*seconds, strict=True))
    return [
        Figure(work, peer, mine, column, amount, unit)
        for peer, column in zip(peers, theirs, strict=True)
    ]


def _short(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{_rounded(value, 3):g}"


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")
