"""Waiting for the pieces of other workers."""

import itertools

import pytest

from igpt.errors import IgptError
from igpt.storage.pieces import await_pieces


def test_the_time_begins_anew_with_each_piece() -> None:
    come: list[str] = []
    looks = itertools.count()
    clock = itertools.count(0, 60)

    def sleep(seconds: float) -> None:
        if next(looks) % 2:  # a piece in every other look, which are a minute apart
            come.append(f"piece-{len(come)}")

    await_pieces(
        [f"piece-{number}" for number in range(4)],
        lambda: come,
        what="pieces",
        timeout=130,
        clock=lambda: float(next(clock)),
        sleep=sleep,
    )
    assert len(come) == 4
    with pytest.raises(IgptError, match=r"pieces of other .* for 30 seconds: 1 .* is piece-4"):
        await_pieces(
            ["piece-0", "piece-4"],
            lambda: come,
            what="pieces",
            timeout=30,
            clock=lambda: float(next(clock)),
            sleep=lambda seconds: None,
        )


def test_whoever_is_asked_to_stop_waits_no_longer() -> None:
    def tick() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await_pieces(["a"], list, what="pieces", tick=tick, sleep=lambda seconds: None)
