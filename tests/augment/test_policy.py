from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from cifarnet.augment.policy import Draws, Policy, build_policy, draw

POLICY = build_policy("full")


def probabilities(policy: Policy) -> dict[str, float]:
    return {f.name: getattr(policy, f.name) for f in fields(policy) if f.name.endswith("_p")}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", (0.0, 0.0, 0.0, 0.0, 0.0)),
        ("light", (1.0, 0.5, 0.0, 0.0, 0.0)),
        ("full", (1.0, 0.5, 0.5, 0.5, 0.5)),
    ],
)
def test_policies_differ_in_their_probabilities_only(name, expected):
    policy = build_policy(name)
    names = ("crop_p", "flip_p", "affine_p", "jitter_p", "hole_p")
    assert probabilities(policy) == dict(zip(names, expected, strict=True))
    assert replace(policy, **probabilities(Policy())) == Policy()


def test_the_probability_of_all_steps_beyond_light_can_be_set():
    assert build_policy("full") == build_policy("full", 0.5) == Policy()
    assert build_policy("full", 0.25) == Policy(affine_p=0.25, jitter_p=0.25, hole_p=0.25)
    for name in ("none", "light"):
        assert build_policy(name, 0.25) == build_policy(name)
    assert build_policy("light") == build_policy("full", 0.0)


def test_the_probabilities_of_single_steps_win():
    rare = build_policy("full", 0.25)
    assert build_policy("full", 0.25, hole_p=1.0, jitter_p=None) == replace(rare, hole_p=1.0)
    assert build_policy("full", hole_p=0.0) == replace(Policy(), hole_p=0.0)
    for name in ("none", "light"):
        assert build_policy(name, hole_p=1.0) == build_policy(name)


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
