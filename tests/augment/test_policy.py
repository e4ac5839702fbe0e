from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from policies import policy_of

from cifarnet.augment.policy import Draws, Policy, build_policy, draw
from cifarnet.settings.augmentation import AugmentationSettings

POLICY = policy_of("full")


def probabilities(policy: Policy) -> dict[str, float]:
    return {f.name: getattr(policy, f.name) for f in fields(policy) if f.name.endswith("_p")}


def of(image_size: int = 32, **settings: object) -> Policy:
    return build_policy(AugmentationSettings(**settings), image_size)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", (0.0, 0.0, 0.0, 0.0, 0.0)),
        ("light", (1.0, 0.5, 0.0, 0.0, 0.0)),
        ("full", (1.0, 0.5, 0.05, 0.05, 0.1)),
    ],
)
def test_policies_differ_in_their_probabilities_only(name, expected):
    policy = of(augment=name)
    names = ("crop_p", "flip_p", "affine_p", "hole_p", "jitter_p")
    assert probabilities(policy) == dict(zip(names, expected, strict=True))
    assert replace(policy, **probabilities(of())) == of()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1.0, 0.5, 0.0, 0.05, 0.0)),
        ({"affine_p": 0.3, "hole_p": 0.0}, (1.0, 0.5, 0.3, 0.0, 0.0)),
        ({"augment_p": 0.4}, (1.0, 0.5, 0.4, 0.4, 0.4)),
        ({"augment": "light"}, (1.0, 0.5, 0.0, 0.0, 0.0)),
        ({"augment": "none"}, (0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_a_published_policy_takes_the_place_of_affine_and_jitter(given, expected):
    policy = of(auto_augment="randaugment", **given)
    assert policy.auto_augment == "randaugment"
    names = ("crop_p", "flip_p", "affine_p", "hole_p", "jitter_p")
    assert probabilities(policy) == dict(zip(names, expected, strict=True))


def test_the_probability_of_all_steps_beyond_light_can_be_set():
    rare = of(augment_p=0.25)
    assert rare == replace(of(), affine_p=0.25, hole_p=0.25, jitter_p=0.25)
    for name in ("none", "light"):
        assert of(augment=name, augment_p=0.25) == of(augment=name)
    assert of(augment="light") == of(augment_p=0.0)


def test_the_probabilities_of_single_steps_win():
    assert of(augment_p=0.25, hole_p=1.0) == replace(of(augment_p=0.25), hole_p=1.0)
    assert of(hole_p=0.0) == replace(of(), hole_p=0.0)
    for name in ("none", "light"):
        assert of(augment=name, hole_p=1.0) == of(augment=name)


def test_pixels_grow_with_the_images():
    small, large, between = of(), of(image_size=128), of(image_size=48, pad=3)
    assert (small.size, small.pad, small.hole, small.max_shift) == (32, 4, 16, 2)
    assert (large.size, large.pad, large.hole, large.max_shift) == (128, 16, 64, 8)
    assert (between.pad, between.hole, between.max_shift) == (4, 24, 3)


def test_the_ranges_are_those_of_the_flags():
    policy = of(
        pad=2, shift=0.05, scale=0.2, degrees=5, hole=8, jitter="0.1,0.2,0.3,0.04", border="black"
    )
    assert (policy.pad, policy.max_shift, policy.scale, policy.rotate) == (2, 1, 0.2, 5.0)
    assert (policy.hole, policy.border) == (8, "black")
    assert (policy.brightness, policy.contrast, policy.saturation, policy.hue) == (
        *(0.1, 0.2, 0.3),
        0.04,
    )


@pytest.mark.parametrize(
    ("shift", "pixels"), [(0.0625, 2), (0.05, 1), (0.0, 0), (0.125, 4), (0.03125, 1)]
)
def test_a_shift_is_whole_pixels_and_at_most_its_share(shift, pixels):
    assert of(shift=shift).max_shift == pixels


def test_equal_keys_give_equal_draws_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    first, again, other = draw(POLICY, 50, 1, 2), draw(POLICY, 50, 1, 2), draw(POLICY, 50, 1, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_holds_the_draws_of_its_images():
    whole = draw(POLICY, 50, 1)
    parts = [whole.part(0, 20), whole.part(20, 50)]
    joined = Draws(*map(torch.cat, zip(*parts, strict=True)))
    assert all(torch.equal(a, b) for a, b in zip(whole, joined, strict=True))


def test_draws_are_independent_of_one_another_and_of_the_neighbours():
    drawn = draw(POLICY, 20_000, 2)
    columns = [drawn.flip, drawn.affine, drawn.jitter, drawn.hole, drawn.scale, drawn.rotate]
    columns += [*drawn.offset.T, *drawn.shift.T, *drawn.factors.T, *drawn.corner.T]
    values = torch.stack([column.float() for column in columns]).numpy()
    assert np.abs(np.corrcoef(values) - np.eye(len(values))).max() < 0.04
    for each in values:
        assert abs(np.corrcoef(each[1:], each[:-1])[0, 1]) < 0.04
