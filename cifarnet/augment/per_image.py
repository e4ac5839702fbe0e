"""The policy on one image at a time, with albumentations and torchvision, in workers."""

import os
from typing import TYPE_CHECKING

import numpy as np

from cifarnet.augment.policy import Policy
from cifarnet.augment.published import PublishedPolicy
from cifarnet.core.seeds import derived_seed

if TYPE_CHECKING:
    import albumentations as A


class PerImageEngine:
    """Applies a `Policy` to one image at a time.

    `mean` holds the channel means of the data set, in [0, 1]: the colour of padding and holes.
    """

    def __init__(self, policy: Policy, mean: tuple[float, float, float]) -> None:
        self.transforms = _transforms(policy, tuple(round(255 * m) for m in mean))

    def __call__(self, images: np.ndarray, *key: int) -> np.ndarray:
        """Returns augmented copies of `images`, both uint8 [B,3,H,W].

        `key` (whole numbers) is the seed: equal keys give equal changes. Each transform has a seed
        of its own. With one seed for all, as `A.Compose` sets it, their decisions would depend on
        each other.
        """
        import cv2  # here: see `_transforms`

        cv2.setNumThreads(1)  # threads slow down images this small, and die in a forked worker
        for place, transform in enumerate(self.transforms):
            transform.set_random_seed(derived_seed(*key, place))
        augmented = np.empty_like(images)
        for i, image in enumerate(images.transpose(0, 2, 3, 1)):  # [H,W,3]
            image = np.ascontiguousarray(image)
            for transform in self.transforms:
                image = transform(image=image)["image"]
            augmented[i] = image.transpose(2, 0, 1)
        return augmented


def _transforms(
    policy: Policy, mean: tuple[int, ...]
) -> "list[A.BasicTransform | PublishedPolicy]":
    """The transforms of the steps whose probability is above 0, in the policy's order."""
    # albumentations would ask a server for a newer version. It is imported here because the import
    # is slow and the batched engine does not need it.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    import cv2

    size, padded = policy.size, policy.size + 2 * policy.pad
    shift = policy.max_shift  # pixels: a share would be cut off towards 0
    fill = mean if policy.border == "mean" else (0, 0, 0)
    outside = {"border_mode": cv2.BORDER_CONSTANT, "fill": fill}
    pad = A.PadIfNeeded(padded, padded, **outside)
    affine = A.Affine(
        translate_px={"x": (-shift, shift), "y": (-shift, shift)},
        scale=(1 - policy.scale, 1 + policy.scale),
        keep_ratio=True,
        rotate=(-policy.rotate, policy.rotate),
        p=policy.affine_p,
        **outside,
    )
    jitter = A.ColorJitter(
        brightness=(1 - policy.brightness, 1 + policy.brightness),
        contrast=(1 - policy.contrast, 1 + policy.contrast),
        saturation=(1 - policy.saturation, 1 + policy.saturation),
        hue=(-policy.hue, policy.hue),
        p=policy.jitter_p,
    )
    hole = A.CoarseDropout(
        num_holes_range=(1, 1),
        hole_height_range=(policy.hole, policy.hole),
        hole_width_range=(policy.hole, policy.hole),
        fill=mean,
        p=policy.hole_p,
    )
    steps = [
        (policy.crop_p, pad),
        (policy.crop_p, A.RandomCrop(size, size)),
        (policy.flip_p, A.HorizontalFlip(p=policy.flip_p)),
        *((1, PublishedPolicy(name, fill)) for name in [policy.auto_augment] if name != "none"),
        (policy.affine_p, affine),
        (policy.hole_p, hole),
        (policy.jitter_p, jitter),
    ]
    return [transform for probability, transform in steps if probability > 0]
