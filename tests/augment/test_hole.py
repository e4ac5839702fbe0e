import numpy as np
import pytest
from support.augmentation import (
    EXACT,
    FILL,
    assert_same_pixels,
    batched,
    draws_of,
    pictures,
    step_of,
    versions,
)

from cifarnet.augment.hole import Hole


@pytest.mark.parametrize(("size", "hole"), [(32, 16), (32, 32), (32, 1), (64, 16)])
def test_the_same_draws_give_the_pixels_of_albumentations(size, hole):
    step = step_of(Hole, size, hole=hole)
    assert step.side == hole * size // 32
    assert_same_pixels(step, pictures(64, size), draws_of(step, 64), EXACT)


def test_the_hole_is_one_square_of_the_mean_anywhere_inside():
    step, black = step_of(Hole, hole_p=0.5), np.zeros((3, 32, 32), dtype=np.uint8)
    by_one = versions(step, black, 2000)
    by_batch = batched(step)(np.repeat(black[None], 2000, axis=0), 1)
    for images in (by_one, by_batch):
        corners = []
        for hole in (images == np.array(FILL)[:, None, None]).all(axis=1):
            if hole.any():
                row, column = np.argwhere(hole)[0]
                assert hole.sum() == 256
                assert hole[row : row + 16, column : column + 16].all()
                corners.append((row, column))
        assert abs(len(corners) / 2000 - 0.5) < 0.05
        assert {row for row, _ in corners} == {column for _, column in corners} == set(range(17))
