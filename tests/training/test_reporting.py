"""What each rank's sink is told."""

import math
from typing import Any

import pytest
import torch

from igpt.errors import IgptError
from igpt.training.agreement import Agreement, Flags, Pending
from igpt.training.reporting import Reporter
from tests.training.workers import MODEL, MemorySink


def report(rank: int) -> tuple[Reporter, MemorySink]:
    """Steps 1 and 2, reported by one of two ranks; rank 1 waited longer for data."""
    sink = MemorySink()
    reporter = Reporter(sink, MODEL, rank=rank, steps=10, global_batch=12, peak=1e12)
    pending = Pending()
    for step in (1, 2):
        pending.add(step, torch.tensor(0.0), 7, 0.1)
    agreed = Agreement(Flags(), [3.0, 2.0], [7, 8], waits=[0.5, 1.0], seconds=4.0)
    reporter.trained(pending, agreed)
    return reporter, sink


def shown(rank: int) -> dict[str, Any]:
    return report(rank)[1].shown


def test_every_rank_says_its_progress_and_rank_0_alone_the_rest() -> None:
    for rank in (0, 1):
        reporter, sink = report(rank)
        reporter.event("training", step=0)
        reporter.validated(2, 2.5)
        sink.flush()
        assert (sink.shown["done"], sink.shown["total"]) == (2, 10)
        assert (len(sink.lines), len(sink.events)) == ((3, 2) if rank == 0 else (0, 0))


def test_ranks_differ_only_in_how_long_they_waited_themselves() -> None:
    first, second = shown(0), shown(1)
    assert (first.pop("own_data_wait"), second.pop("own_data_wait")) == (0.125, 0.25)
    assert first == second
    assert first["data_wait"] == 0.25
    assert first["tokens_per_second"] == 2 * 12 * MODEL.positions / 4.0


def test_a_validation_shows_at_once_with_its_step_and_stays() -> None:
    reporter, sink = report(0)
    assert sink.shown["validation_loss"] is None
    reporter.validated(2, 2.5)
    expected = {"done": 2, "validation_loss": 2.5, "validation_step": 2}
    assert sink.shown.items() >= expected.items()
    pending = Pending()
    pending.add(3, torch.tensor(0.0), 7, 0.1)
    reporter.trained(pending, Agreement(Flags(), [1.5], [7], waits=[0.0, 0.0], seconds=1.0))
    assert sink.shown.items() >= (expected | {"done": 3}).items()


def test_the_progress_stops_before_a_loss_that_is_no_number() -> None:
    sink = MemorySink()
    reporter = Reporter(sink, MODEL, rank=1, steps=10, global_batch=12, peak=None)
    pending = Pending()
    for step in (1, 2):
        pending.add(step, torch.tensor(0.0), 7, 0.1)
    agreed = Agreement(Flags(), [3.0, math.nan], [7, 8], waits=[0.0, 0.0], seconds=4.0)
    with pytest.raises(IgptError, match="loss of step 2"):
        reporter.trained(pending, agreed)
    assert (sink.shown["done"], sink.shown["loss"]) == (1, 3.0)


def test_a_sign_of_life_says_the_latest_progress_again() -> None:
    reporter, sink = report(1)
    expected, sink.shown = sink.shown, {}
    reporter.alive()
    assert sink.shown == expected
