"""FixMatch's splits: the published algorithm's own numbers, and what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.errors import UserError
from igpt.evaluation import label_subset

EVEN = np.arange(60) * 7 % 5
UNEVEN = np.array([0] * 20 + [1] * 5 + [2] + [1] * 2 + [0] * 3)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Labels of 2 to 8 classes, each occurring, and a size that can be drawn from them."""
    classes = draw(st.integers(2, 8))
    more = draw(st.lists(st.integers(0, classes - 1), max_size=100))
    labels = np.array(draw(st.permutations([*range(classes), *more])))
    return labels, draw(st.integers(classes, len(labels)))


@pytest.mark.parametrize(
    ("labels", "seed", "subset"),
    [
        (EVEN, 1, [10, 8, 56, 34, 12, 15, 38, 26, 44, 52]),
        (EVEN, 5, [35, 48, 41, 4, 2, 25, 43, 21, 29, 52, 10, 13]),
        (EVEN, 0, [0, 3, 1, 4, 2, 5, 8, 6, 9, 7]),
        (UNEVEN, 1, [28, 23, 25, 17, 3, 13, 27, 19, 16, 10, 21, 4]),
        (UNEVEN, 3, [29, 24, 25, 12, 17, 15, 27, 14]),
    ],
)
def test_subsets_are_those_of_the_published_script(
    labels: np.ndarray, seed: int, subset: list[int]
) -> None:
    """Golden: what FixMatch's `create_split.py` chooses from these labels."""
    assert label_subset(labels, len(subset), seed).tolist() == subset


@settings(max_examples=50, deadline=None)
@given(example=labelled(), seed=st.integers(0, 10))
def test_subset_has_each_sample_once_and_every_class(
    example: tuple[np.ndarray, int], seed: int
) -> None:
    labels, size = example
    subset = label_subset(labels, size, seed)
    assert subset.dtype == np.int64
    assert len(set(subset.tolist())) == size
    assert set(labels[subset]) == set(labels)


@settings(max_examples=50, deadline=None)
@given(example=labelled(), seed=st.integers(0, 10), data=st.data())
def test_smaller_budget_is_the_beginning_of_a_larger_one(
    example: tuple[np.ndarray, int], seed: int, data: st.DataObject
) -> None:
    labels, size = example
    smaller = data.draw(st.integers(len(set(labels)), size))
    assert (label_subset(labels, size, seed)[:smaller] == label_subset(labels, smaller, seed)).all()


@pytest.mark.parametrize("size", [10, 40, 250])
def test_equal_classes_get_equal_shares(size: int) -> None:
    labels = np.arange(1000) * 3 % 10
    assert (np.bincount(labels[label_subset(labels, size, 2)]) == size // 10).all()


def test_seeds_differ_and_the_global_generator_is_left_alone() -> None:
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    assert label_subset(EVEN, 10, 1).tolist() != label_subset(EVEN, 10, 2).tolist()
    assert np.random.random() == expected


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (EVEN, 61, "a budget of 61 labels.*at most 60"),
        (EVEN, 4, "a budget of 4 labels.*at least 5"),
        (np.array([0, 1, -1]), 2, "1 of 3 samples have no label"),
        (np.array([0, 2]), 2, "no sample has label 1"),
        (np.array([0.0, 1.0]), 2, "labels are float64"),
        (np.zeros(0, np.int64), 1, r"labels are int64 \[0\]"),
    ],
)
def test_wrong_input_is_refused(labels: np.ndarray, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        label_subset(labels, size, 1)
