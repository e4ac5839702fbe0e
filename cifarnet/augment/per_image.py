"""The policy on one image at a time, with albumentations and torchvision, in workers."""

import os

import numpy as np
import torch

from cifarnet.augment.policy import Policy
from cifarnet.core.late import LateModule
from cifarnet.core.seeds import derived_seed

cv2 = LateModule("cv2")


class PerImageEngine:
    """Applies a `Policy` to one image at a time, on the CPU. `mean` is that of `BatchedEngine`;
    `device` is where the network wants the images."""

    def __init__(
        self, policy: Policy, mean: tuple[float, float, float], device: torch.device
    ) -> None:
        self.policy, self.device = policy, device
        # albumentations would ask a server for a newer version when it is imported.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        colour = tuple(round(255 * m) for m in mean)
        self.transforms = [
            (step.number, place, transform)
            for step in policy.steps
            for place, transform in enumerate(step.for_image(colour))
        ]
        if self.transforms:  # before workers fork: there, ending the threads would never return
            cv2.setNumThreads(1)

    def __call__(self, images: np.ndarray, *key: int) -> np.ndarray:
        """Returns augmented copies of `images`, both uint8 [B,3,S,S]; `key` is the seed.

        Each transform has a seed of its own: with one for all, as in `A.Compose`, decisions would
        depend on each other.
        """
        if not self.transforms:
            return images.copy()
        cv2.setNumThreads(1)  # in workers that did not fork; threads slow down images this small
        for step, place, transform in self.transforms:
            transform.set_random_seed(derived_seed(*key, step, place))
        augmented = np.empty_like(images)
        for i, image in enumerate(images.transpose(0, 2, 3, 1)):  # [S,S,3]
            image = np.ascontiguousarray(image)
            for _, _, transform in self.transforms:
                image = transform(image=image)["image"]
            augmented[i] = image.transpose(2, 0, 1)
        return augmented
