"""The learning rate rises for an epoch and falls to 0 as a cosine."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.errors import UserError
from igpt.training.config import ScheduleConfig
from igpt.training.schedule import learning_rate, warmup_steps


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),
        (1, 0.2),
        (9, 1.0),  # the last of warm-up
        (10, 1.0),  # the top of the cosine
        (35, 0.5 * (1 + math.cos(math.pi / 4))),
        (60, 0.5),  # half way
        (109, 0.5 * (1 + math.cos(math.pi * 0.99))),  # the last update is not for nothing
        (110, 0.0),
    ],
)
def test_rates_at_marked_steps(step: int, expected: float) -> None:
    rate = learning_rate(step, highest=1.0, warmup=10, steps=110)
    assert rate == pytest.approx(expected, abs=1e-12)


def test_without_warmup_the_first_rate_is_the_highest() -> None:
    assert learning_rate(0, highest=0.003, warmup=0, steps=10) == 0.003


def test_a_run_may_be_warmup_alone() -> None:
    assert learning_rate(9, highest=1.0, warmup=10, steps=10) == 1.0
    assert learning_rate(10, highest=1.0, warmup=10, steps=10) == 0.0


@given(st.integers(1, 300), st.data())
def test_it_rises_then_falls_and_stays_within_bounds(steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps))
    rates = [learning_rate(s, highest=1.0, warmup=warmup, steps=steps) for s in range(steps + 1)]
    assert all(0 < rate <= 1 for rate in rates[:-1])
    assert rates[-1] == 0
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_warmup_is_one_epoch_unless_given() -> None:
    schedule = ScheduleConfig(steps=1_000_000)
    assert warmup_steps(schedule, samples=1_281_167, global_batch=128) == 10_010
    given_steps = ScheduleConfig(steps=1000, warmup=7)
    assert warmup_steps(given_steps, samples=1_281_167, global_batch=128) == 7


def test_an_epoch_longer_than_the_run_is_refused_with_the_mend() -> None:
    with pytest.raises(UserError, match=r"10010 steps of 128.*Set schedule\.warmup"):
        warmup_steps(ScheduleConfig(steps=1000), samples=1_281_167, global_batch=128)
