"""The confusion matrix as report.html shows it: its most confused classes and its colors."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Two classes, by index, and how many images of each were predicted as the other."""

    one: int
    other: int
    one_as_other: int
    other_as_one: int


def confused_pairs(matrix: Sequence[Sequence[int]]) -> list[Pair]:
    """The pairs of classes that were confused at all, the most confused first; in each pair, the
    first class was predicted as the second more often than the reverse."""
    pairs = []
    for a, b in itertools.combinations(range(len(matrix)), 2):
        one, other = (a, b) if matrix[a][b] >= matrix[b][a] else (b, a)
        if matrix[one][other]:
            pairs.append(Pair(one, other, matrix[one][other], matrix[other][one]))
    return sorted(pairs, key=lambda pair: -pair.one_as_other - pair.other_as_one)


def shaded(matrix: Sequence[Sequence[int]], most: int) -> dict[int, list[tuple[int, str]]]:
    """The rows of the confusion matrix by class; of more than `most`, the most often confused.

    A cell is its count and its shade, such as h9 (hits) or m3 (mistakes): the share of the true
    class, in tenths. For mistakes it is the root of the share, so that rare ones can be seen too.
    """
    counts = np.array(matrix)
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    chosen = np.sort(np.argsort(-mistakes, kind="stable")[:most]).tolist()
    sizes = np.maximum(counts.sum(axis=1), 1)

    def cell(true: int, predicted: int) -> tuple[int, str]:
        count = int(counts[true, predicted])
        share = count / sizes[true]
        if true == predicted:
            return count, f"h{round(10 * share)}"
        return count, f"m{math.ceil(10 * math.sqrt(share))}"

    return {true: [cell(true, predicted) for predicted in chosen] for true in chosen}
