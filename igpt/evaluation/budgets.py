"""Label budgets: class-balanced subsets by the exact algorithm of FixMatch.

Source: google-research/fixmatch, `scripts/create_split.py` (Sohn et al., 2020), from which the
low-label literature takes its splits. Only numpy's legacy generator gives the same subsets; numpy
has frozen its stream.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UserError


def label_subset(labels: NDArray[Any], size: int, seed: int) -> NDArray[np.int64]:
    """Which `size` samples keep their label: places in `labels`, int64 [size], in drawing order.

    labels: int [N] in 0..K-1, every class present, in the order of the source: the subset is
        FixMatch's only if that order is its order.
    seed: 1 to 5 are FixMatch's five folds; 0 takes the first samples of each class, as there.

    The classes are drawn in proportion to their frequencies, equally where these are equal. For one
    seed a smaller subset is the beginning of each larger one. Raises UserError where `size` is less
    than the number of classes or more than N.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)}", expected="integers [N], at least one"
        )
    if labels.min() < 0:
        raise UserError(
            f"{int((labels < 0).sum())} of {len(labels)} samples have no label",
            mend="Leave the unlabelled samples out",
        )
    counts = np.bincount(labels)
    if not counts.all():
        raise UserError(f"no sample has label {counts.argmin()}", expected="every label from 0 on")
    if not len(counts) <= size <= len(labels):
        raise UserError(
            f"a budget of {size} labels cannot be drawn",
            expected=f"at least {len(counts)}, one for each class, and at most {len(labels)}",
        )
    of_class = [np.flatnonzero(labels == number) for number in range(len(counts))]
    if seed:
        generator = np.random.RandomState(seed)
        for members in of_class:
            generator.shuffle(members)

    frequencies = counts / counts.max()
    drawn = np.zeros(len(counts), np.int64)
    subset = np.empty(size, np.int64)
    for place in range(size):
        # The class that is furthest behind its frequency; the lowest of equals.
        number = np.argmax(frequencies - drawn / max(drawn.max(), 1))
        subset[place] = of_class[number][drawn[number]]
        drawn[number] += 1
    return subset
