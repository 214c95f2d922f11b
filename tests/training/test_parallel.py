"""Several workers train as one does, and what is lost with one of them is made up bit for bit."""

import random
import traceback
import weakref
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from igpt.errors import IgptError
from igpt.training import parallel
from tests.training.workers import Job, configuration, flushed, merged, run_workers

STEPS = 50


@pytest.fixture(scope="module")
def uninterrupted(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For a number of workers, what each of them returned from a run that nothing disturbed."""

    @cache
    def run(world_size: int) -> list[Any]:
        store = tmp_path_factory.mktemp(f"workers-{world_size}") / "checkpoints"
        return run_workers(Job(dataset, str(store), configuration(STEPS)), world_size)

    return run


@pytest.fixture
def job(dataset: str, tmp_path: Path) -> Job:
    return Job(data=dataset, store=str(tmp_path / "checkpoints"), config=configuration(STEPS))


def values(lines: dict[int, dict[str, Any]], key: str) -> list[Any]:
    assert list(lines) == list(range(1, STEPS + 1))
    return [line[key] for line in lines.values()]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_workers_sees_the_same_batches_and_losses(
    uninterrupted: Any, world_size: int
) -> None:
    [(alone, alone_lines, _)] = uninterrupted(1)
    ranks = uninterrupted(world_size)
    outcome, lines, weights = ranks[0]
    one, many = merged(alone_lines), merged(lines)
    assert values(many, "digest") == values(one, "digest")
    np.testing.assert_allclose(values(many, "loss"), values(one, "loss"), atol=1e-5, rtol=0)
    assert outcome.validation_loss == pytest.approx(alone.validation_loss, abs=1e-5)
    for other, nothing, others_weights in ranks[1:]:
        assert other == outcome
        assert not nothing  # rank 0 alone reports
        for name, tensor in weights.items():
            assert np.array_equal(others_weights[name], tensor), name


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_stop_that_one_worker_asks_for_stops_all_and_changes_no_bit(
    uninterrupted: Any, job: Job, world_size: int
) -> None:
    first = run_workers(replace(job, stop_at=5, culprit=world_size - 1), world_size)
    assert [(outcome.status, outcome.step) for outcome, _, _ in first] == [
        ("stopped", 12)
    ] * world_size
    second = run_workers(replace(job, attempt=2, resume=True), world_size)
    assert {outcome.status for outcome, _, _ in second} == {"finished"}
    found = merged(first[0][1], second[0][1])
    straight = merged(uninterrupted(world_size)[0][1])
    assert values(found, "loss") == values(straight, "loss")
    assert values(found, "digest") == values(straight, "digest")
    for name, tensor in uninterrupted(world_size)[0][2].items():
        assert np.array_equal(second[0][2][name], tensor), name


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_worker_killed_at_a_random_step_costs_steps_but_no_bit(
    uninterrupted: Any, job: Job, culprit: int
) -> None:
    job = replace(job, config=configuration(STEPS, checkpoints={"every_steps": 4}))
    kill_at = random.randrange(8, 24)  # pytest-randomly prints the seed
    killed = replace(job, kill_at=kill_at, culprit=culprit)
    assert run_workers(killed, 2) == [None, None]
    before = flushed(killed)
    assert 4 <= max(line["step"] for line in before) < STEPS

    second = run_workers(replace(job, attempt=2, resume=True), 2)
    found = merged(before, second[0][1])
    straight = merged(uninterrupted(2)[0][1])
    assert values(found, "loss") == values(straight, "loss")
    assert values(found, "digest") == values(straight, "digest")


def test_a_run_moves_to_another_number_of_workers(uninterrupted: Any, job: Job) -> None:
    first = run_workers(replace(job, stop_at=5), 3)
    second = run_workers(replace(job, attempt=2, resume=True), 2)
    found, straight = merged(first[0][1], second[0][1]), merged(uninterrupted(1)[0][1])
    assert values(found, "digest") == values(straight, "digest")
    np.testing.assert_allclose(values(found, "loss"), values(straight, "loss"), atol=1e-5, rtol=0)


def test_workers_may_need_different_numbers_of_micro_batches(dataset: str, tmp_path: Path) -> None:
    """Of 10 rows two workers have 3 and one has 4: one micro batch of 3 or two."""
    config = configuration(10, batch={"global": 10, "micro": 3})
    lines = {}
    for world_size in (1, 3):
        job = Job(dataset, str(tmp_path / str(world_size)), config)
        lines[world_size] = merged(run_workers(job, world_size)[0][1])
    alone, together = ([line["loss"] for line in lines[w].values()] for w in (1, 3))
    assert len(alone) == 10
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)


def test_waiting_for_a_worker_that_never_comes_ends(tmp_path: Path) -> None:
    joining = parallel.process_group(
        0,
        2,
        torch.device("cpu"),
        rendezvous=f"file://{tmp_path}/meet",
        timeout=timedelta(seconds=0.5),
    )
    with pytest.raises(IgptError, match=r"rank 0 of 2 waited 0\.5 s"), joining:
        pass


@pytest.mark.parametrize(
    ("device", "fails", "destroyed"),
    [("cpu", False, 1), ("cpu", True, 1), ("cuda", False, 1), ("cuda", True, 0)],
)
def test_a_rank_that_fails_does_not_wait_for_peers_in_an_exchange_of_nccl(
    monkeypatch: pytest.MonkeyPatch, device: str, fails: bool, destroyed: int
) -> None:
    """With a stand-in for the group: NCCL needs as many GPUs as ranks."""
    calls: list[str] = []
    monkeypatch.setattr(
        parallel.dist, "init_process_group", lambda backend, **_: calls.append(backend)
    )
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: calls.append("destroy"))

    def work() -> None:
        with parallel.process_group(0, 2, torch.device(device)):
            if fails:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") if fails else nullcontext():
        work()
    assert calls == ["nccl" if device == "cuda" else "gloo", *["destroy"] * destroyed]


def test_what_an_error_holds_is_gone_before_the_group_is() -> None:
    """A reducer that outlives its group waits for gloo's thread for ever, now and then."""

    class Reducer:
        pass

    def fail() -> None:
        reducer = Reducer()
        held.append(weakref.ref(reducer))
        raise RuntimeError("the peer is gone")

    def explain() -> None:
        try:
            fail()
        except RuntimeError as error:
            raise ValueError("of another kind") from error

    held: list[weakref.ref[Reducer]] = []
    with pytest.raises(ValueError, match="of another kind") as caught:
        explain()
    assert held[0]() is not None
    parallel._release_frames(caught.value)
    assert held[0]() is None
    assert "the peer is gone" in "".join(traceback.format_exception(caught.value))


def test_rows_are_shared_without_gap_or_overlap() -> None:
    for rows in (0, 1, 5, 12, 128):
        for world_size in (1, 2, 3, 7):
            shares = [parallel.share(rows, rank, world_size) for rank in range(world_size)]
            assert [row for share in shares for row in share] == list(range(rows))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_worker_needs_no_process_group() -> None:
    device = torch.device("cpu")
    with parallel.process_group(0, 1, device):
        assert parallel.gather([1.5, 2.0], device).tolist() == [[1.5, 2.0]]
        assert parallel.gather_words([2**64 - 1], device).tolist() == [[2**64 - 1]]
