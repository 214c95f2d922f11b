"""Why an attempt ended, and whether it is tried again."""

import pytest

from igpt.runs.failures import (
    REQUEUE,
    FailureClass,
    RankExit,
    RetryBudget,
    Verdict,
    classify,
    may_retry,
)


@pytest.mark.parametrize(
    ("exits", "outcome", "failure"),
    [
        ([RankExit(0, 0), RankExit(1, 0)], "finished", None),
        ([RankExit(0, REQUEUE), RankExit(1, REQUEUE)], "stopped", FailureClass.PREEMPTED),
        ([RankExit(0, 0), RankExit(1, REQUEUE)], "stopped", FailureClass.PREEMPTED),
        ([RankExit(0, 6), RankExit(1, -9)], "superseded", None),
        ([RankExit(1, -9), RankExit(0, -9)], "failed", FailureClass.NODE),
        ([RankExit(0, 1)], "failed", FailureClass.CRASH),
        ([RankExit(0, 2)], "failed", FailureClass.USER_ERROR),
        ([RankExit(0, 3)], "failed", FailureClass.STORAGE),
        ([RankExit(0, 1, FailureClass.OUT_OF_MEMORY, "x")], "failed", FailureClass.OUT_OF_MEMORY),
    ],
)
def test_the_verdict_over_the_ranks(
    exits: list[RankExit], outcome: str, failure: FailureClass | None
) -> None:
    verdict = classify(exits)
    assert (verdict.outcome, verdict.failure) == (outcome, failure)


def test_a_killed_rank_is_the_cause_of_what_the_others_say() -> None:
    crashed = RankExit(0, 1, FailureClass.CRASH, "RuntimeError: connection reset by peer")
    verdict = classify([crashed, RankExit(1, -9)])
    assert verdict == Verdict("failed", FailureClass.NODE, "rank 1 was killed by signal 9")


def test_a_rank_that_we_tore_down_is_never_the_cause() -> None:
    mistake = RankExit(0, 2, FailureClass.USER_ERROR, "the shards changed")
    verdict = classify([mistake, RankExit(1, -9, torn_down=True)])
    assert (verdict.failure, verdict.reason) == (FailureClass.USER_ERROR, "the shards changed")
    late = classify([RankExit(0, -9, torn_down=True)])
    assert "within its grace" in late.reason
    assert late.late
    assert not verdict.late


def test_a_rank_that_names_its_failure_outweighs_one_that_does_not() -> None:
    verdict = classify([RankExit(1, 1), RankExit(0, 2, FailureClass.USER_ERROR, "no such file")])
    assert verdict.reason == "no such file"


GONE = RankExit(0, 1, None, "RuntimeError: Connection closed by peer")


@pytest.mark.parametrize(
    ("exits", "failure", "rank"),
    [
        # The consequence comes first, and the cause after it.
        ([GONE, RankExit(1, 1, FailureClass.CORRUPT, "cause")], FailureClass.CORRUPT, 1),
        ([GONE, RankExit(1, 1, FailureClass.CRASH, "cause")], FailureClass.CRASH, 1),
        ([GONE, RankExit(1, -9)], FailureClass.NODE, 1),
        ([GONE, RankExit(1, 3)], FailureClass.STORAGE, 1),
        # A rank that aborts where a peer is gone was not killed from outside.
        (
            [RankExit(0, -6), RankExit(1, 1, FailureClass.CRASH, "cause")],
            FailureClass.CRASH,
            1,
        ),
        ([RankExit(0, -6), GONE], FailureClass.NODE, 0),
        # What must not be tried again is not, whoever was first.
        (
            [
                RankExit(0, -9),
                RankExit(2, 1, FailureClass.STORAGE, "also"),
                RankExit(1, 2, FailureClass.USER_ERROR, "cause"),
            ],
            FailureClass.USER_ERROR,
            1,
        ),
        ([RankExit(0, -6), RankExit(1, 2)], FailureClass.USER_ERROR, 1),
    ],
)
def test_a_consequence_of_a_peers_end_is_not_the_cause(
    exits: list[RankExit], failure: FailureClass, rank: int
) -> None:
    verdict = classify(exits)
    assert verdict.failure is failure
    assert verdict.reason == "cause" or f"rank {rank} " in verdict.reason


def test_a_user_error_is_never_tried_again() -> None:
    user = FailureClass.USER_ERROR
    assert not may_retry(user, [user], RetryBudget())


def test_each_class_has_its_own_budget() -> None:
    node, crash = FailureClass.NODE, FailureClass.CRASH
    budget = RetryBudget(node=2, crash=0)
    assert may_retry(node, [node, crash, node], budget)
    assert not may_retry(node, [node, node, node], budget)
    assert not may_retry(crash, [crash], budget)


def test_preemption_is_without_limit() -> None:
    assert may_retry(FailureClass.PREEMPTED, [FailureClass.PREEMPTED] * 1000, RetryBudget())
