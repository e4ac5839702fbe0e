"""The policy an image at a time, with albumentations."""

import albumentations as A
import cv2
import numpy as np

from cifarnet.augment.policy import Policy
from cifarnet.core.seeds import derived_seed
from cifarnet.images.imageset import SIZE


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
        cv2.setNumThreads(
            1
        )  # a pool of threads an image of this size only costs, and dies in a forked worker
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
    shift = round(
        policy.shift * SIZE
    )  # in pixels: a share would be drawn as a float and cut off towards 0
    padding = A.PadIfNeeded(
        SIZE + 2 * policy.pad, SIZE + 2 * policy.pad, border_mode=cv2.BORDER_CONSTANT, fill=fill
    )
    steps = [
        (policy.crop_p, [padding, A.RandomCrop(SIZE, SIZE)]),
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
    return [
        transform
        for probability, transforms in steps
        if probability > 0
        for transform in transforms
    ]
