import numpy as np
import pytest
import torch
from support.augmentation import (
    EXACT,
    FILL,
    ROUNDING,
    assert_fills,
    assert_same_pixels,
    assert_same_spread,
    draws_of,
    pictures,
    step_of,
)

from cifarnet.augment.affine import Affine
from cifarnet.augment.step import Step

COUNT = 2000
IMAGES = 256
STILL = {
    "shift": torch.zeros(IMAGES, 2),
    "scale": torch.ones(IMAGES),
    "rotate": torch.zeros(IMAGES),
}


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [("shift", EXACT), ("scale", ROUNDING), ("rotate", ROUNDING), ("all", ROUNDING)],
)
def test_the_same_draws_give_the_pixels_of_albumentations(change, tolerance):
    still = {name: values for name, values in STILL.items() if change not in (name, "all")}
    step = step_of(Affine)
    assert_same_pixels(step, pictures(IMAGES), draws_of(step, IMAGES, **still), tolerance)


@pytest.mark.parametrize(
    "flags", [{"image_size": 64}, {"border": "black", "shift": 0.1, "degrees": 90.0}]
)
def test_other_sizes_and_ranges_are_those_of_albumentations_too(flags):
    step = step_of(Affine, **flags)
    assert_same_pixels(step, pictures(IMAGES, step.size), draws_of(step, IMAGES), ROUNDING)


def parameters(step: Step) -> list[dict]:
    """What albumentations draws for each of many images."""
    (transform,) = step.for_image(FILL)
    transform.set_random_seed(0)
    return [
        transform.get_params_dependent_on_data({"shape": (32, 32, 3)}, {}) for _ in range(COUNT)
    ]


def shifts(drawn: list[dict]) -> np.ndarray:
    centre = np.array([15.5, 15.5, 1])
    return np.stack([(np.asarray(p["matrix"]) @ centre - centre)[:2] for p in drawn])


def test_shift_scale_and_rotation_fill_their_ranges_in_both_forms():
    drawn = parameters(step_of(Affine))
    scales, angles = [p["scale"]["x"] for p in drawn], [p["rotate"] for p in drawn]
    assert_fills(angles, -15, 15)
    assert_fills(scales, 0.9, 1.1)
    assert all(p["scale"]["x"] == p["scale"]["y"] for p in drawn)
    np.testing.assert_allclose(shifts(drawn), shifts(drawn).round(), atol=1e-6)
    ours = draws_of(step_of(Affine), 20_000)["affine"]
    assert_same_spread(ours["scale"], scales)
    assert_same_spread(ours["rotate"], angles)
    for axis in (0, 1):  # 0.0625 of 32 pixels
        assert_same_spread(ours["shift"][:, axis], shifts(drawn)[:, axis].round())
        assert set(shifts(drawn)[:, axis].round()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize(("shift", "pixels"), [(0.0625, 2), (0.05, 1), (0.0, 0), (0.125, 4)])
def test_a_shift_is_whole_pixels_and_at_most_its_share(shift, pixels):
    step = step_of(Affine, shift=shift, scale=0.0, degrees=0.0)
    ours = draws_of(step, COUNT)["affine"]["shift"]
    assert set(ours.unique().tolist()) == set(range(-pixels, pixels + 1))
    assert set(shifts(parameters(step))[:, 0].round()) == set(range(-pixels, pixels + 1))
