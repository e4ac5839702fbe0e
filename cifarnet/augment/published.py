"""Published augmentation policies, as torchvision has them, on one image at a time."""

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from cifarnet.augment.step import BORDERS, ImageForm, Step
from cifarnet.core.late import LateModule
from cifarnet.settings.augmentation import AugmentationSettings

v2 = LateModule("torchvision.transforms.v2")

# By --auto_augment, with torchvision's defaults. `fill` comes in from outside, in [0, 255].
PUBLISHED: dict[str, Callable[[list[int]], Callable[[Image.Image], Image.Image]]] = {
    # Cubuk et al. 2019, arXiv 1805.09501; its policy for CIFAR-10
    "autoaugment": lambda fill: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=fill),
    "randaugment": lambda fill: v2.RandAugment(fill=fill),  # Cubuk et al. 2020, arXiv 1909.13719
    # Müller and Hutter 2021, arXiv 2103.10158
    "trivialaugment": lambda fill: v2.TrivialAugmentWide(fill=fill),
}


class Published(Step):
    """Changes an image by a published policy. It has no form for a batch."""

    name = "published"

    def __init__(self, settings: AugmentationSettings, size: int) -> None:
        self.probability = float(settings.auto_augment != "none")
        self.policy, self.border = settings.auto_augment, BORDERS[settings.border]

    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        fill = [self.border * level for level in mean]
        return [_PublishedForm(PUBLISHED[self.policy](fill))]


class _PublishedForm:
    """Calls a transform of torchvision as one of albumentations."""

    def __init__(self, transform: Callable[[Image.Image], Image.Image]) -> None:
        self.transform = transform
        self.seeds = random.Random()

    def set_random_seed(self, seed: int) -> None:
        self.seeds.seed(seed)  # each image then gets a seed of its own, in order

    def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
        # torchvision draws from torch's generator, which dropout uses too: it is put back.
        # `torch.manual_seed` would also seed CUDA's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seeds.getrandbits(63))
            return {"image": np.asarray(self.transform(Image.fromarray(image)))}
