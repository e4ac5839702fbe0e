import numpy as np
from support.augmentation import (
    EXACT,
    FILL,
    assert_same_pixels,
    coordinates,
    draws_of,
    pictures,
    step_of,
    versions,
)

from cifarnet.augment.crop import Crop


def test_the_same_draws_give_the_pixels_of_albumentations():
    flags = ({}, {"pad": 0}, {"pad": 2, "border": "black"}, {"image_size": 64, "pad": 3})
    for step in (step_of(Crop, **chosen) for chosen in flags):
        images = pictures(64, step.size)
        assert_same_pixels(step, images, draws_of(step, 64), EXACT)
    assert step.pad == 6  # 3 of 32 pixels


def test_the_crop_reaches_every_offset_and_fills_with_the_mean():
    seen = set()
    for image in versions(step_of(Crop), coordinates(), 2000):
        inside = image[2] == 255
        assert (image[:, ~inside] == np.array(FILL)[:, None]).all()
        row, column = np.argwhere(inside)[0]
        seen.add((int(image[1, row, column]) // 8 - row, int(image[0, row, column]) // 8 - column))
    offsets = {(row, column) for row in range(-4, 5) for column in range(-4, 5)}
    assert seen == offsets
    drawn = draws_of(step_of(Crop), 20_000)["crop"]["corner"] - 4
    assert {tuple(corner) for corner in drawn.tolist()} == offsets
