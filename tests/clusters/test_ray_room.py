"""How many workers a run on Ray begins with, and what it remembers from attempt to attempt.

What Ray says of its room is replaced: the tests on a real Ray hold that to account, and cannot have
others be quicker at will.
"""

from collections.abc import Iterator

import pytest

from igpt.clusters.ray import room
from igpt.clusters.ray.room import Size, workers_for

ONE = {"CPU": 1.0}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The room there is at each look; the last stays."""
    said: list[int] = []

    def look(*_: object) -> int:
        return said.pop(0) if len(said) > 1 else said[0]

    monkeypatch.setattr(room, "room_for", look)
    monkeypatch.setattr(room, "_TICK", 0.0)
    monkeypatch.setattr(room, "_SETTLE_SECONDS", 0.05)
    return said


def begin(least: int, most: int, hoped: int = 0) -> int:
    return workers_for(ONE, "PACK", least, most, lambda: True, hoped)


def test_it_begins_with_all_it_wants_as_soon_as_there_is_room(found: list[int]) -> None:
    found += [1, 3, 9]
    assert begin(1, 4) == 4


def test_it_begins_with_what_it_counted_on_before_others_take_it(found: list[int]) -> None:
    found += [0, 3, 2]  # somebody takes one of them at the third look
    assert begin(1, 4, hoped=3) == 3


def test_where_less_has_come_it_waits_for_what_settles(found: list[int]) -> None:
    found += [0, 1, 2]
    assert begin(1, 4, hoped=3) == 2
    found[:] = [0]
    assert begin(2, 4) == 2  # which are waited for


def test_it_ends_when_it_is_asked_to(found: list[int]) -> None:
    found += [1]
    answers: Iterator[bool] = iter([True, False])
    assert workers_for(ONE, "PACK", 1, 4, lambda: next(answers)) == 0


def test_an_attempt_counts_on_what_the_one_before_had() -> None:
    size = Size()
    assert size.hoped == 0
    size.begin(3)
    assert size.hoped == 3
    size.hope(5)
    assert size.hoped == 5


def test_after_growth_that_came_to_nothing_it_looks_less_often() -> None:
    size = Size()
    size.begin(3)
    assert size.seconds(60) == 60
    for _ in range(2):
        size.hope(4)
        size.begin(3)  # another was quicker
    assert size.seconds(60) == 240
    size.begin(2)  # a node was lost: nothing that it hoped for
    assert size.seconds(60) == 240
    size.hope(4)
    size.begin(4)
    assert size.seconds(60) == 60
    for _ in range(50):
        size.hope(5)
        size.begin(4)
    assert size.seconds(60) == 60 * 64
