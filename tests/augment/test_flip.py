import numpy as np
from support.augmentation import (
    EXACT,
    assert_same_pixels,
    batched,
    coordinates,
    draws_of,
    pictures,
    step_of,
    versions,
)

from cifarnet.augment.flip import Flip


def test_the_same_draws_give_the_pixels_of_albumentations():
    assert_same_pixels(step_of(Flip), pictures(64), draws_of(step_of(Flip), 64), EXACT)


def test_half_of_the_images_are_mirrored():
    image, count = coordinates(), 2000
    by_one = versions(step_of(Flip), image, count)
    by_batch = batched(step_of(Flip))(np.repeat(image[None], count, axis=0), 1)
    for images in (by_one, by_batch):
        mirrored = (images == image[:, :, ::-1]).all((1, 2, 3))
        assert (mirrored ^ (images == image).all((1, 2, 3))).all()
        assert abs(mirrored.mean() - 0.5) < 0.05
