"""How long a store that is away is waited for."""

import errno

import pytest

from igpt.errors import Unreachable
from igpt.storage.patience import Patience, insist


def test_pauses_grow_until_patience_is_at_its_end_and_begin_anew_with_the_store() -> None:
    now = 0.0
    patience = Patience(100.0, first=1.0, longest=5.0, clock=lambda: now)
    away = Unreachable("away")
    assert not patience.waiting
    assert [patience.pause(away) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert patience.waiting
    now = 99.0
    assert patience.pause(away) == 5.0
    patience.reset()
    assert not patience.waiting
    now = 150.0
    assert patience.pause(away) == 1.0
    now = 251.0
    with pytest.raises(Unreachable):
        patience.pause(away)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_waited_for(code: int) -> None:
    full = Unreachable("full")
    full.__cause__ = OSError(code, "full")
    with pytest.raises(Unreachable):
        Patience().pause(full)
    assert Patience(full=True).pause(full) == 0.5


def test_what_is_insisted_upon_is_done_when_the_store_is_back() -> None:
    answers: list[int | Unreachable] = [Unreachable("first"), Unreachable("second"), 7]

    def action() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Unreachable):
            raise answer
        return answer

    told: list[str] = []
    assert insist(action, away=lambda error: told.append(str(error))) == 7
    assert told == ["first.", "second."]


@pytest.mark.parametrize(("seconds", "left"), [(0.0, 60.0), (60.0, 0.1)])
def test_who_has_no_time_insists_on_nothing(seconds: float, left: float) -> None:
    tries: list[int] = []

    def action() -> None:
        tries.append(1)
        raise Unreachable("away")

    with pytest.raises(Unreachable):
        insist(action, seconds, time_left=lambda: left)
    assert len(tries) == 1
