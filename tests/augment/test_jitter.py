import pytest
import torch
from support.augmentation import (
    EXACT,
    FILL,
    ROUNDING,
    assert_fills,
    assert_same_pixels,
    assert_same_spread,
    batched,
    by_albumentations,
    draws_of,
    pictures,
    step_of,
)

from cifarnet.augment.jitter import Jitter
from cifarnet.augment.policy import Policy

COUNT = 256
NAMES = ("brightness", "contrast", "saturation", "hue")


def factors(name: str, low: float, high: float) -> torch.Tensor:
    """Factors that change nothing except `name`, which runs from low to high."""
    values = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(COUNT, 1)
    values[:, NAMES.index(name)] = torch.linspace(low, high, COUNT)
    return values


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("brightness", EXACT), ("contrast", ROUNDING), ("saturation", (1, 0.99))],
)
def test_the_same_draws_give_the_pixels_of_albumentations(name, tolerance):
    step = step_of(Jitter)
    draws = draws_of(step, COUNT, factors=factors(name, 0.5, 1.5))
    assert_same_pixels(step, pictures(COUNT), draws, tolerance)


@pytest.mark.parametrize(
    "values",
    [{"factors": factors("hue", -0.02, 0.02)}, {"factors": factors("hue", -0.5, 0.5)}, {}],
    ids=["hue", "any hue", "all four"],
)
def test_hues_are_those_of_albumentations_up_to_its_rounding(values):
    """OpenCV keeps hue and saturation as bytes in between: one step is up to 9 levels."""
    step, images = step_of(Jitter), pictures(COUNT)
    draws = draws_of(step, COUNT, **values)
    difference = batched(step).apply(images, draws).float()
    difference -= by_albumentations(Policy((step,)), images, draws)
    assert difference.abs().max() <= 16
    assert (difference.abs() <= 1).float().mean() > 0.98
    assert difference.mean().abs() < 0.25


def test_grey_pixels_black_and_white_have_no_hue_to_turn():
    images = torch.linspace(0, 255, COUNT).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 32, 32)
    draws = draws_of(step_of(Jitter), COUNT, factors=factors("hue", -0.5, 0.5))
    assert torch.equal(batched(step_of(Jitter)).apply(images, draws), images)


def test_the_factors_fill_their_ranges_in_any_order_in_both_forms():
    step = step_of(Jitter)
    (transform,) = step.for_image(FILL)
    transform.set_random_seed(0)
    theirs, ours = [transform.get_params() for _ in range(2000)], draws_of(step, 20_000)["jitter"]
    for i, name in enumerate(NAMES):
        low, high = (-0.02, 0.02) if name == "hue" else (0.8, 1.2)
        assert_fills([drawn[name] for drawn in theirs], low, high)
        assert_same_spread(ours["factors"][:, i], [drawn[name] for drawn in theirs])
    assert len({tuple(drawn["order"]) for drawn in theirs}) == 24
    assert len(ours["order"].unique(dim=0)) == 24
