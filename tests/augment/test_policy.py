import albumentations
import numpy as np
import pytest
import torch
from support.augmentation import policy_of, versions

from cifarnet.augment.flip import Flip
from cifarnet.augment.policy import APPLIED, STEPS, Policy, build_policy
from cifarnet.settings.augmentation import AugmentationSettings

POLICY = policy_of("full")


def of(image_size: int = 32, **settings: object) -> Policy:
    return build_policy(AugmentationSettings(**settings), image_size)


def probabilities(**settings: object) -> dict[str, float]:
    return {step.name: step.probability for step in of(**settings).steps}


LIGHT = {"crop": 1.0, "flip": 0.5}
PUBLISHED = LIGHT | {"published": 1.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"augment": "none"}, {}),
        ({"augment": "none", "hole_p": 1.0}, {}),
        ({"augment": "light", "augment_p": 0.25, "hole_p": 1.0}, LIGHT),
        ({}, LIGHT | {"affine": 0.05, "hole": 0.05, "jitter": 0.1}),
        ({"augment_p": 0.25}, LIGHT | {"affine": 0.25, "hole": 0.25, "jitter": 0.25}),
        ({"augment_p": 0.25, "hole_p": 1.0}, LIGHT | {"affine": 0.25, "hole": 1.0, "jitter": 0.25}),
        ({"hole_p": 0.0}, LIGHT | {"affine": 0.05, "jitter": 0.1}),
        ({"augment_p": 0.0}, LIGHT),
        ({"augment": "light", "flip_p": 0.25}, {"crop": 1.0, "flip": 0.25}),
        ({"augment_p": 0.0, "flip_p": 0.0}, {"crop": 1.0}),
        ({"auto_augment": "randaugment"}, PUBLISHED | {"hole": 0.05}),
        (
            {"auto_augment": "randaugment", "affine_p": 0.3, "hole_p": 0.0},
            PUBLISHED | {"affine": 0.3},
        ),
        (
            {"auto_augment": "randaugment", "augment_p": 0.4},
            PUBLISHED | {"affine": 0.4, "hole": 0.4, "jitter": 0.4},
        ),
        ({"auto_augment": "randaugment", "augment": "light"}, PUBLISHED),
        ({"auto_augment": "randaugment", "augment": "none"}, {"published": 1.0}),
    ],
)
def test_a_policy_has_the_steps_of_its_settings_in_this_order(settings, expected):
    assert list(probabilities(**settings).items()) == list(expected.items())


def test_pixels_grow_with_the_images_and_ranges_are_those_of_the_flags():
    flags = {"pad": 3, "shift": 0.05, "scale": 0.2, "degrees": 5.0, "hole": 8}
    for size, pixels in ((32, (3, 1, 8)), (48, (4, 2, 12)), (128, (12, 6, 32))):
        crop, _, affine, hole, jitter = of(size, jitter="0.1,0.2,0.3,0.04", **flags).steps
        assert (crop.pad, affine.shift, hole.side) == pixels
        assert (affine.scales, affine.rotations) == ((0.8, 1.2), (-5.0, 5.0))
        assert jitter.ranges == [(0.9, 1.1), (0.8, 1.2), (0.7, 1.3), (-0.04, 0.04)]


def columns(draws) -> dict[tuple[str, str], torch.Tensor]:
    return {(step, name): values for step, drawn in draws.items() for name, values in drawn.items()}


def test_equal_keys_give_equal_draws_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    first, again, other = (columns(POLICY.draw(50, *key)) for key in ((1, 2), (1, 2), (1, 3)))
    for name, values in first.items():
        assert torch.equal(values, again[name])
        assert not torch.equal(values, other[name]) or name == ("crop", APPLIED)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_are_independent_of_one_another_and_of_the_neighbours():
    drawn = columns(POLICY.draw(20_000, 2))
    chosen = [values for (_, name), values in drawn.items() if name != "order"]
    rows = torch.cat([values.float().view(20_000, -1) for values in chosen], 1).T.numpy()
    rows = rows[rows.std(1) > 0]  # each image is cropped
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.04
    for row in rows:
        assert abs(np.corrcoef(row[1:], row[:-1])[0, 1]) < 0.04


class Dummy(Flip):
    """A new step, which draws much and changes nothing."""

    name = "dummy"

    def draw(self, count, generator):
        return {"noise": torch.rand(count, 9, generator=generator)}

    def for_batch(self, images, drawn, mean):
        return images

    def for_image(self, mean):
        return [albumentations.NoOp()]


@pytest.mark.parametrize("place", range(len(STEPS["full"]) + 1))
def test_a_new_step_changes_no_other_steps_draws(monkeypatch, place):
    settings = AugmentationSettings(augment_p=0.5)
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    before, pixels = columns(POLICY.draw(50, 1)), versions(POLICY, image, 20)
    steps = STEPS["full"]
    monkeypatch.setitem(STEPS, "full", (*steps[:place], Dummy, *steps[place:]))
    longer = build_policy(settings, 32)
    assert len(longer.steps) == len(POLICY.steps) + 1
    after = columns(longer.draw(50, 1))
    assert all(torch.equal(after[name], values) for name, values in before.items())
    assert (versions(longer, image, 20) == pixels).all()
