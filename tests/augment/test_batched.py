"""All steps together on whole batches: the pixels of albumentations, whatever the chunks."""

import numpy as np
import pytest
import torch
from support.augmentation import (
    CPU,
    EXACT,
    FILL,
    MEAN,
    ROUNDING,
    assert_same_pixels,
    batched,
    by_albumentations,
    pictures,
    policy_of,
    versions,
)

from cifarnet.augment.batched import BatchedEngine
from cifarnet.augment.policy import APPLIED, take

POLICY = policy_of("full")
COUNT = 256


@pytest.mark.parametrize(
    ("augment", "flags", "tolerance"),
    [
        ("none", {}, EXACT),
        ("light", {}, EXACT),
        ("full", {"jitter_p": 0.0}, ROUNDING),
        ("full", {"jitter_p": 0.0, "image_size": 64}, ROUNDING),
        ("full", {"jitter_p": 0.0, "pad": 2, "border": "black", "hole": 8}, ROUNDING),
    ],
)
def test_the_same_draws_give_the_pixels_of_albumentations(augment, flags, tolerance):
    policy = policy_of(augment, **flags)
    images = pictures(COUNT, flags.get("image_size", 32))
    assert_same_pixels(policy, images, policy.draw(COUNT, 7), tolerance)


def test_with_hues_too_they_are_those_of_albumentations_up_to_its_rounding():
    images, draws = pictures(COUNT), POLICY.draw(COUNT, 7)
    difference = batched(POLICY).apply(images, draws).float()
    difference -= by_albumentations(POLICY, images, draws)
    assert difference.abs().max() <= 16  # tests/augment/test_jitter.py
    assert (difference.abs() <= 1).float().mean() > 0.98
    assert difference.mean().abs() < 0.25


def test_what_the_crop_cut_off_stays_cut_off():
    """A crop without the first 4 rows and columns, then half the size: the mean fills the rest."""
    policy = policy_of("full", augment_p=1.0, hole_p=0.0, jitter_p=0.0)
    images = torch.full((COUNT, 3, 32, 32), 255, dtype=torch.uint8)
    draws = policy.draw(COUNT, 1)
    draws["flip"][APPLIED][:] = False
    draws["crop"]["corner"][:] = 8  # 28 rows and columns of the image, then 4 of the mean
    for name, value in {"shift": 0, "scale": 0.5, "rotate": 0}.items():
        draws["affine"][name][:] = value
    expected = torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1).repeat(1, 32, 32)
    expected[:, 8:22, 8:22] = 255
    assert (batched(policy).apply(images, draws) == expected).all()
    assert_same_pixels(policy, images, draws, EXACT)


def test_whole_images_are_alike_on_average():
    """Mean and deviation of each pixel over many versions of one image, by both engines."""
    image = pictures()[-1].numpy()
    ours = batched(POLICY)(image[None].repeat(4000, axis=0), 3).astype(np.float32)
    theirs = versions(POLICY, image, 4000, (3,)).astype(np.float32)
    error = theirs.std(axis=0) / np.sqrt(2000)  # of the difference of two means
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * error + 0.3).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.15)


@pytest.mark.parametrize("size", [1, 7, 100, COUNT])
def test_neither_chunks_nor_parts_of_a_batch_change_an_image(size):
    images, draws = pictures(COUNT), POLICY.draw(COUNT, 3)
    engine = BatchedEngine(POLICY, MEAN, CPU)
    whole = engine.apply(images, draws)
    engine.chunk = size
    assert torch.equal(engine.apply(images, draws), whole)
    parts = [slice(i, i + size) for i in range(0, COUNT, size)]
    changed = [engine.apply(images[part], take(draws, part)) for part in parts]
    assert torch.equal(torch.cat(changed), whole)
    assert engine.apply(images[:0], take(draws, slice(0))).shape == (0, 3, 32, 32)
