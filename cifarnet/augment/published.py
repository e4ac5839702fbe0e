"""Published augmentation policies, as torchvision has them, on one image at a time."""

import random

import numpy as np
import torch
from PIL import Image


class PublishedPolicy:
    """AutoAugment (Cubuk et al. 2019, arXiv 1805.09501; its policy for CIFAR-10), RandAugment
    (Cubuk et al. 2020, arXiv 1909.13719) or TrivialAugmentWide (Müller and Hutter 2021,
    arXiv 2103.10158), with torchvision's defaults.

    It is called as a transform of albumentations. `name` is that of --auto_augment; `fill` is the
    colour that comes in from outside, in [0, 255].
    """

    def __init__(self, name: str, fill: tuple[int, int, int]) -> None:
        # The import takes a second, and only this policy needs it.
        from torchvision.transforms import v2

        self.transform = {
            "autoaugment": lambda fill: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=fill),
            "randaugment": lambda fill: v2.RandAugment(fill=fill),
            "trivialaugment": lambda fill: v2.TrivialAugmentWide(fill=fill),
        }[name](list(fill))
        self.seeds = random.Random()

    def set_random_seed(self, seed: int) -> None:
        """Restarts the draws: each image then gets a seed of its own, in order."""
        self.seeds.seed(seed)

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Returns a changed copy of `image` uint8 [H,W,3], under the key "image"."""
        # torchvision draws from torch's generator, which dropout uses too: it is put back.
        # `torch.manual_seed` would also seed CUDA's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seeds.getrandbits(63))
            return {"image": np.asarray(self.transform(Image.fromarray(image)))}
