"""Who owns a run, and what counts of what attempts made."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.errors import DataCorrupt
from igpt.runs.attempts import (
    Claim,
    claim,
    merge_metrics,
    newest,
    on_lineage,
    read_claims,
    read_metrics,
    superseded,
)
from igpt.storage import Store


def owned(attempt: int, start_step: int = 0, start_attempt: int | None = None) -> Claim:
    return Claim(attempt, f"launch-{attempt}", "host", 1, 0.0, start_step, start_attempt)


def test_one_of_many_gets_the_claim(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda _: claim(store, owned(1)), range(8)))
    assert sum(won) == 1


def test_claims_read_back_in_order_and_unclaimed_attempts_are_passed_over(store: Store) -> None:
    for number in (2, 10, 1):
        claim(store, owned(number))
    store.put("attempts/0011/cluster.yaml", b"kind: local")
    assert [one.attempt for one in read_claims(store)] == [1, 2, 10]


def test_only_a_later_claim_supersedes(store: Store) -> None:
    claim(store, owned(1))
    store.put("attempts/0002/cluster.yaml", b"kind: local")
    assert not superseded(store, 1)
    claim(store, owned(2))
    assert superseded(store, 1)
    assert not superseded(store, 2)


def test_what_an_old_attempt_commits_beyond_a_newer_ones_start_is_not_there() -> None:
    claims = [owned(1), owned(2, 10, 1)]
    assert on_lineage(claims, 1, 10)
    assert not on_lineage(claims, 1, 20)
    assert newest(claims, [(10, 1), (20, 1)]) == (10, 1)
    assert newest(claims, [(10, 1), (20, 1), (15, 2)]) == (15, 2)


def test_without_a_checkpoint_there_is_nothing_to_start_from() -> None:
    assert newest([owned(1)], []) is None


def test_an_attempt_that_started_afresh_voids_all_before_it() -> None:
    assert newest([owned(1), owned(2, 0)], [(10, 1)]) is None


def test_metrics_merge_without_a_step_twice() -> None:
    lines = {
        1: [{"step": step, "loss": 1.0} for step in range(1, 9)],
        2: [{"step": step, "loss": 2.0} for step in range(6, 11)],
    }
    merged = merge_metrics([owned(1), owned(2, 5, 1)], lines)
    assert [line["step"] for line in merged] == list(range(1, 11))
    assert [line["attempt"] for line in merged] == [1] * 5 + [2] * 5


def test_metrics_parts_read_back_in_order(store: Store) -> None:
    claim(store, owned(1))
    for first in (100, 1, 50):
        text = "".join(json.dumps({"step": first + i, "loss": 0.5}) + "\n" for i in range(3))
        store.put(f"attempts/0001/metrics-{first:09d}.jsonl", text.encode())
    steps = [line["step"] for line in read_metrics(store)]
    assert steps == [1, 2, 3, 50, 51, 52, 100, 101, 102]


def test_a_line_of_the_metrics_that_is_cut_off_is_named(store: Store) -> None:
    store.put("attempts/0001/metrics-000000001.jsonl", b'{"step": 1, "loss": 0.5}\n{"step": 2, "l')
    with pytest.raises(DataCorrupt, match=r"metrics-000000001.jsonl, line 2 is damaged"):
        read_metrics(store)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(start step, last step) of each attempt, each starting from one checkpoint on the lineage."""
    attempts: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(1, 6))):
        reached = attempts[-1][1] if attempts else 0
        start = draw(st.integers(0, reached))
        attempts.append((start, start + draw(st.integers(0, 20))))
    return attempts


@given(histories())
def test_any_history_of_kills_merges_into_every_step_once(attempts: list[tuple[int, int]]) -> None:
    claims = [owned(number, start) for number, (start, _) in enumerate(attempts, 1)]
    lines = {
        number: [{"step": step, "loss": 0.0} for step in range(start + 1, end + 1)]
        for number, (start, end) in enumerate(attempts, 1)
    }
    merged = [line["step"] for line in merge_metrics(claims, lines)]
    assert merged == list(range(1, attempts[-1][1] + 1))


@pytest.mark.parametrize("kind", ["loss", "validation_loss"])
def test_a_validation_follows_the_training_line_of_its_step(kind: str) -> None:
    lines = {1: [{"step": 5, "validation_loss": 1.0}, {"step": 5, "loss": 2.0}]}
    merged = merge_metrics([owned(1)], lines)
    assert next(iter(merged[0 if kind == "loss" else 1].keys() - {"step", "attempt"})) == kind
