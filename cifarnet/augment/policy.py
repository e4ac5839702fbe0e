"""The augmentation policy: ranges, probabilities, draws."""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cifarnet.core.seeds import derived_seed
from cifarnet.images.imageset import SIZE

CONTRAST, SATURATION, HUE = 1, 2, 3  # columns of `Draws.factors`; 0 is the brightness


@dataclass(frozen=True)
class Policy:
    """What is drawn for each training image, in this order; a probability of 0 leaves a step out.

    The five steps and their ranges are the published recipe's. Order and the probabilities of the last three
    are this project's: geometry first, so that each pixel is resampled once at most; colour next; the hole
    last, so that the jitter leaves it at the data set's mean, which the network sees as exactly nothing. Half
    of the images pass each of the three unchanged, so that one in eight is only cropped and flipped.
    """

    crop_p: float = 1.0  # pad by `pad` on all sides with the mean, cut out 32x32 anywhere
    pad: int = 4  # pixels
    flip_p: float = 0.5  # mirror left to right
    affine_p: float = (
        0.5  # shift, scale and rotate in one resampling; the mean comes in from outside
    )
    shift: float = 0.0625  # of the image's width or height, at most, along each axis
    scale: float = 0.1  # 1 - scale to 1 + scale
    rotate: float = 15.0  # degrees, at most, either way
    jitter_p: float = 0.5  # factors from 1 - x to 1 + x (hue: turns from -x to x), in random order
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    hole_p: float = 0.5  # a square of the mean, wholly inside the image
    hole: int = 16  # pixels


def build_policy(name: str, augment_p: float | None = None, **single: float | None) -> Policy:
    """The policy "full" (all five steps), "light" (crop and flip) or "none"; `augment_p`, unless None, is the
    probability of each step that "light" leaves out, and those in `single` (affine_p, ...) are of one step."""
    off = {"full": (), "light": ("affine_p", "jitter_p", "hole_p")}
    probabilities = tuple(f.name for f in fields(Policy) if f.name.endswith("_p"))
    policy = (
        Policy()
        if augment_p is None
        else replace(Policy(), **dict.fromkeys(off["light"], augment_p))
    )
    policy = replace(policy, **{step: p for step, p in single.items() if p is not None})
    return replace(policy, **dict.fromkeys(off.get(name, probabilities), 0.0))


class Draws(NamedTuple):
    """What a policy drew for each of B images: tensors on the CPU, their first dimension B."""

    offset: Tensor  # int64 [B,2], row and column of the crop's corner in the padded image
    flip: Tensor  # bool [B]
    affine: Tensor  # bool [B], whether the next three apply
    shift: Tensor  # int64 [B,2], pixels to the right and down
    scale: Tensor  # float32 [B], above 1: the image grows
    rotate: Tensor  # float32 [B], degrees, counter-clockwise
    jitter: Tensor  # bool [B], whether the next two apply
    factors: Tensor  # float32 [B,4]: brightness, contrast, saturation, and hue in turns
    order: Tensor  # int64 [B,4], the columns of `factors` in the order of their application
    hole: Tensor  # bool [B]
    corner: Tensor  # int64 [B,2], row and column of the hole's first pixel

    def part(self, first: int, end: int) -> "Draws":
        """What was drawn for the images from `first` to before `end`."""
        return Draws(*(values[first:end] for values in self))


def draw(policy: Policy, count: int, *key: int) -> Draws:
    """What `policy` asks for `count` images; equal `key`s (whole numbers) draw the same, on any device."""
    generator = torch.Generator().manual_seed(derived_seed(*key))

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    def chance(probability: float) -> Tensor:
        return uniform(0, 1) < probability

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (count, 2), generator=generator)

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
