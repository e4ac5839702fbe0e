"""The augmentation policy: steps, ranges, probabilities, and random draws from them."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cifarnet.core.seeds import derived_seed
from cifarnet.images.imageset import SIZE

CONTRAST, SATURATION, HUE = 1, 2, 3  # columns of `Draws.factors`; 0 is the brightness


@dataclass(frozen=True)
class Policy:
    """Five steps, in this order. A probability of 0 leaves a step out.

    Steps and ranges come from the published recipe. Their order, and the probability 0.5 of the
    last three, are this project's. Geometry comes first: each pixel is interpolated once at most.
    The hole comes last: colour jitter cannot change its colour, the mean, which the network sees as
    0. One image in eight is cropped and flipped only.
    """

    # Crop: pad all sides with the mean, then cut out 32x32 anywhere.
    crop_p: float = 1.0
    pad: int = 4  # pixels

    # Flip: mirror left to right.
    flip_p: float = 0.5

    # Affine: shift, scale and rotate in one interpolation. Pixels from outside have the mean.
    affine_p: float = 0.5
    shift: float = 0.0625  # the largest shift along each axis, as a share of the image
    scale: float = 0.1  # scales lie in [1 - scale, 1 + scale]
    rotate: float = 15.0  # degrees, the largest rotation either way

    # Jitter: change colours by factors in [1 - x, 1 + x], in random order.
    jitter_p: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02  # no factor: moves in [-hue, hue], in turns of the colour wheel

    # Hole: fill a square inside the image with the mean.
    hole_p: float = 0.5
    hole: int = 16  # pixels, height and width


BEYOND_LIGHT = ("affine_p", "jitter_p", "hole_p")  # the steps that "light" leaves out


def build_policy(name: str, augment_p: float | None = None, **single: float | None) -> Policy:
    """The policy "full" (all steps), "light" (crop and flip) or "none".

    `augment_p` sets the probability of affine, jitter and hole in "full". `single` sets one of them
    (affine_p, jitter_p, hole_p) and wins. None keeps the default.
    """
    off = dict.fromkeys(BEYOND_LIGHT, 0.0)
    if name == "none":
        return Policy(crop_p=0.0, flip_p=0.0, **off)
    if name == "light":
        return Policy(**off)
    policy = Policy() if augment_p is None else Policy(**dict.fromkeys(BEYOND_LIGHT, augment_p))
    return replace(policy, **{step: p for step, p in single.items() if p is not None})


class Draws(NamedTuple):
    """What a policy drew for each of B images: tensors on the CPU."""

    offset: Tensor  # int64 [B,2]: row and column of the crop's corner in the padded image
    flip: Tensor  # bool [B]
    affine: Tensor  # bool [B]: whether the next three apply
    shift: Tensor  # int64 [B,2]: pixels to the right and down
    scale: Tensor  # float32 [B]: above 1 the image grows
    rotate: Tensor  # float32 [B]: degrees counter-clockwise
    jitter: Tensor  # bool [B]: whether the next two apply
    factors: Tensor  # float32 [B,4]: brightness, contrast, saturation, and hue in turns
    order: Tensor  # int64 [B,4]: columns of `factors`, in the order in which they are applied
    hole: Tensor  # bool [B]: whether the next one applies
    corner: Tensor  # int64 [B,2]: row and column of the hole's first pixel

    def part(self, first: int, end: int) -> "Draws":
        """The draws of the images `first` to `end` - 1."""
        return Draws(*(values[first:end] for values in self))


def draw(policy: Policy, count: int, *key: int) -> Draws:
    """Draws from `policy` for `count` images.

    `key` (whole numbers) is the seed: equal keys give equal draws, on any device.
    """
    generator = torch.Generator().manual_seed(derived_seed(*key))

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    def chance(probability: float) -> Tensor:
        return uniform(0, 1) < probability

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (count, 2), generator=generator)

    # The order of these lines is the order of the draws: another order changes every run.
    shift = round(policy.shift * SIZE)
    gains = policy.brightness, policy.contrast, policy.saturation
    return Draws(
        offset=torch.where(chance(policy.crop_p)[:, None], whole(0, 2 * policy.pad), policy.pad),
        flip=chance(policy.flip_p),
        affine=chance(policy.affine_p),
        shift=whole(-shift, shift),
        scale=uniform(1 - policy.scale, 1 + policy.scale),
        rotate=uniform(-policy.rotate, policy.rotate),
        jitter=chance(policy.jitter_p),
        factors=torch.stack(
            [*(uniform(1 - x, 1 + x) for x in gains), uniform(-policy.hue, policy.hue)], 1
        ),
        order=torch.rand(count, 4, generator=generator).argsort(1),
        hole=chance(policy.hole_p),
        corner=whole(0, SIZE - policy.hole),
    )
