"""The augmentation policy: steps, ranges, probabilities, and random draws from them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cifarnet.core.seeds import derived_seed
from cifarnet.images.imageset import SIZE
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.flags import numbers_in

CONTRAST, SATURATION, HUE = 1, 2, 3  # columns of `Draws.factors`; 0 is the brightness


@dataclass(frozen=True)
class Policy:
    """Six steps, in this order. A probability of 0 leaves a step out."""

    size: int  # pixels, height and width of the images

    # Crop: pad all sides with the border's colour, then cut out the image's own size anywhere.
    crop_p: float
    pad: int  # pixels
    border: str  # "mean" or "black"

    # Flip: mirror left to right.
    flip_p: float

    # A published policy, by its name in --auto_augment. Outside is the border's colour.
    auto_augment: str  # "none" leaves it out

    # Affine: shift, scale and rotate in one interpolation. Outside is the border's colour.
    affine_p: float
    shift: float  # the largest shift along each axis, as a share of the image
    scale: float  # scales lie in [1 - scale, 1 + scale]
    rotate: float  # degrees, the largest rotation either way

    # Hole: fill a square inside the image with the mean.
    hole_p: float
    hole: int  # pixels, height and width

    # Jitter: change colours by factors in [1 - x, 1 + x], in random order.
    jitter_p: float
    brightness: float
    contrast: float
    saturation: float
    hue: float  # no factor: moves in [-hue, hue], in turns of the colour wheel

    @property
    def max_shift(self) -> int:
        """The largest shift in whole pixels."""
        return int(self.shift * self.size + 1e-9)


def build_policy(settings: AugmentationSettings, size: int) -> Policy:
    """The policy of --augment: full (all steps), light (crop and flip) or none.

    --auto_augment adds its policy to each, and takes the place of the affine step and the jitter.

    --pad and --hole are pixels of a 32x32 image: the same share of images of another size.
    """
    grown = size / SIZE
    moved = 0.0 if settings.augment == "none" else 1.0
    chosen = settings.probabilities
    brightness, contrast, saturation, hue = numbers_in(settings.jitter)
    return Policy(
        size=size,
        crop_p=moved,
        pad=round(settings.pad * grown),
        border=settings.border,
        flip_p=0.5 * moved,
        auto_augment=settings.auto_augment,
        shift=settings.shift,
        scale=settings.scale,
        rotate=settings.degrees,
        hole=round(settings.hole * grown),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        **(chosen if settings.augment == "full" else dict.fromkeys(chosen, 0.0)),
    )


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
    shift = policy.max_shift
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
        corner=whole(0, policy.size - policy.hole),
    )
