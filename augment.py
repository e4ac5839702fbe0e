"""The augmentation policy, as one table of ranges and probabilities, and the engine that carries it out."""

import os
from dataclasses import dataclass, fields, replace

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks a server for newer versions

import albumentations as A
import cv2
import numpy as np

from runtime import derived_seed


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
    affine_p: float = 0.5  # shift, scale and rotate in one resampling; the mean comes in from outside
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


def build_policy(name: str) -> Policy:
    """The policy "full" (the published five), "light" (crop and flip) or "none"."""
    off = {"full": (), "light": ("affine_p", "jitter_p", "hole_p")}
    probabilities = tuple(f.name for f in fields(Policy) if f.name.endswith("_p"))
    return replace(Policy(), **dict.fromkeys(off.get(name, probabilities), 0.0))


class AlbumentationsEngine:
    """Carries out a `Policy` an image at a time, with albumentations: made for worker processes.

    `mean` is the data set's, of each channel, in [0, 1].
    """

    def __init__(self, policy: Policy, mean: tuple[float, float, float]) -> None:
        self.transforms = _albumentations(policy, tuple(round(255 * m) for m in mean))

    def __call__(self, images: np.ndarray, *key: int) -> np.ndarray:
        """Augmented copies of `images`, both uint8 [B,3,H,W]; equal `key`s (whole numbers) draw equal changes.

        Each transform gets a seed of its own: with one for all, as a seed given to `A.Compose` sets it, every
        transform's decisions would follow from the same numbers.
        """
        cv2.setNumThreads(1)  # a pool of threads an image of this size only costs, and dies in a forked worker
        for place, transform in enumerate(self.transforms):
            transform.set_random_seed(derived_seed(*key, place))
        augmented = np.empty_like(images)
        for i, image in enumerate(images.transpose(0, 2, 3, 1)):  # [H,W,3]
            image = np.ascontiguousarray(image)
            for transform in self.transforms:
                image = transform(image=image)["image"]
            augmented[i] = image.transpose(2, 0, 1)
        return augmented


def _albumentations(policy: Policy, fill: tuple[int, ...]) -> list[A.BasicTransform]:
    size = 32
    shift = round(policy.shift * size)  # in pixels: a share would be drawn as a float and cut off towards 0
    padding = A.PadIfNeeded(size + 2 * policy.pad, size + 2 * policy.pad, border_mode=cv2.BORDER_CONSTANT, fill=fill)
    steps = [
        (policy.crop_p, [padding, A.RandomCrop(size, size)]),
        (policy.flip_p, [A.HorizontalFlip(p=policy.flip_p)]),
        (
            policy.affine_p,
            [
                A.Affine(
                    translate_px={"x": (-shift, shift), "y": (-shift, shift)},
                    scale=(1 - policy.scale, 1 + policy.scale),
                    keep_ratio=True,
                    rotate=(-policy.rotate, policy.rotate),
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=fill,
                    p=policy.affine_p,
                )
            ],
        ),
        (
            policy.jitter_p,
            [
                A.ColorJitter(
                    brightness=(1 - policy.brightness, 1 + policy.brightness),
                    contrast=(1 - policy.contrast, 1 + policy.contrast),
                    saturation=(1 - policy.saturation, 1 + policy.saturation),
                    hue=(-policy.hue, policy.hue),
                    p=policy.jitter_p,
                )
            ],
        ),
        (
            policy.hole_p,
            [
                A.CoarseDropout(
                    num_holes_range=(1, 1),
                    hole_height_range=(policy.hole, policy.hole),
                    hole_width_range=(policy.hole, policy.hole),
                    fill=fill,
                    p=policy.hole_p,
                )
            ],
        ),
    ]
    return [transform for probability, transforms in steps if probability > 0 for transform in transforms]
