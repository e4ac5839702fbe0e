import numpy as np

from cifarnet.reporting.confusions import confused_pairs, shaded


def test_pairs_are_counted_both_ways():
    matrix = [[5, 1, 0, 0], [4, 5, 0, 0], [7, 0, 9, 0], [0, 0, 0, 3]]
    assert confused_pairs(matrix) == [(2, 0, 7, 0), (1, 0, 4, 1)]
    assert confused_pairs(np.eye(3).tolist()) == []


def test_shades_are_shares_of_the_true_class():
    matrix = shaded([[9, 1, 0], [0, 0, 4], [0, 0, 0]], 3)
    assert [[shade for _, shade in row] for row in matrix.values()] == [
        ["h9", "m4", "m0"],
        ["m0", "h0", "m10"],
        ["m0", "m0", "h0"],
    ]
    assert list(shaded([[9, 0, 0], [0, 5, 1], [0, 2, 5]], 2)) == [1, 2]  # the most confused
