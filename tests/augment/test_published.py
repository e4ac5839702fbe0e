import random

import numpy as np
import pytest
import torch
from PIL import Image
from support.augmentation import FILL, policy_of, step_of, versions
from torchvision.transforms import v2

from cifarnet.augment.published import Published

POLICIES = {
    "autoaugment": lambda fill: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=fill),
    "randaugment": lambda fill: v2.RandAugment(fill=fill),
    "trivialaugment": lambda fill: v2.TrivialAugmentWide(fill=fill),
}
each_policy = pytest.mark.parametrize("name", POLICIES)


def picture() -> np.ndarray:
    """uint8 [3,32,32], without the colours of the border."""
    rows, columns = np.mgrid[:32, :32]
    return np.stack([columns * 4, rows * 8, 200 + rows]).astype(np.uint8)


def drawn(name: str, count: int, key=(1, 2, 3)) -> np.ndarray:
    """`count` versions, uint8 [count,3,32,32], by a policy alone."""
    return versions(step_of(Published, auto_augment=name), picture(), count, key)


@each_policy
@pytest.mark.parametrize("border", ["mean", "black"])
def test_versions_are_those_of_torchvision(name, border):
    theirs = POLICIES[name](list(FILL) if border == "mean" else [0, 0, 0])
    (form,) = step_of(Published, auto_augment=name, border=border).for_image(FILL)
    pixels, seeds = picture().transpose(1, 2, 0), random.Random(9)
    form.set_random_seed(9)
    for _ in range(60):
        ours = form(image=pixels)["image"]
        torch.manual_seed(seeds.getrandbits(63))
        np.testing.assert_array_equal(ours, np.asarray(theirs(Image.fromarray(pixels))))


@each_policy
def test_equal_keys_draw_equal_changes_and_torchs_generator_is_left_alone(name):
    state = torch.get_rng_state()
    first = drawn(name, 20)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert (drawn(name, 20) == first).all()
    for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert (drawn(name, 20, key) != first).any()
    assert len({image.tobytes() for image in first}) > 5  # one draw an image


@each_policy
def test_the_order_is_crop_policy_hole(name):
    """The crop's border is changed by the policy, and the hole is not."""
    policy = policy_of("full", auto_augment=name, affine_p=0.0, jitter_p=0.0, hole_p=1.0, hole=8)
    images = versions(policy, picture(), 60)
    holes = (images == np.array(FILL)[:, None, None]).all(axis=1)
    assert (holes.sum(axis=(1, 2)) >= 64).all()
    corners = {
        tuple(image[:, row, column]) for image in images for row in (0, -1) for column in (0, -1)
    }
    assert len(corners) > 10
