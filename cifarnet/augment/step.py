"""What an augmentation step is: its draws, its form for one image and its form for a batch."""

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from cifarnet.settings.augmentation import AugmentationSettings

BORDERS = {"mean": 1, "black": 0}  # by --border: what the mean colour is multiplied by


class ImageForm(Protocol):
    """A transform of one image that draws for itself, as those of albumentations."""

    def set_random_seed(self, seed: int) -> None:
        """Restarts the draws."""

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        """Returns a changed copy of `image` uint8 [H,W,3], under the key "image"."""


class Draw(NamedTuple):
    """Draws random numbers for `count` images. Results are tensors on the CPU."""

    count: int
    generator: torch.Generator

    def uniform(self, low: float, high: float) -> Tensor:
        """Numbers in [low, high): float32 [count]."""
        return torch.empty(self.count).uniform_(low, high, generator=self.generator)

    def chance(self, probability: float) -> Tensor:
        """True with `probability`: bool [count]."""
        return self.uniform(0, 1) < probability

    def pairs(self, low: int, high: int) -> Tensor:
        """Whole numbers from `low` to `high`: int64 [count,2]."""
        return torch.randint(low, high + 1, (self.count, 2), generator=self.generator)

    def orders(self, things: int) -> Tensor:
        """A random order of the numbers below `things` in each row: int64 [count,things]."""
        return torch.rand(self.count, things, generator=self.generator).argsort(1)


@dataclass(frozen=True)
class Step(ABC):
    """A change of images of `size` pixels, made with `probability`.

    Both forms make the same change. A step that works on one image at a time only leaves out
    `draw` and `for_batch`.
    """

    name: ClassVar[str]
    size: int  # pixels, height and width of the images
    probability: float  # in [0, 1]

    @property
    def number(self) -> int:
        """A part of the step's seed. It depends on the name alone: steps draw independently."""
        return zlib.crc32(self.name.encode())

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: AugmentationSettings, size: int) -> Self:
        """The step that `settings` describe, for images of `size` pixels."""

    @abstractmethod
    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        """Transforms that make the change one after the other, with the step's probability.

        `mean` is the mean colour of the data set, in [0, 255].
        """

    def draw(self, draw: Draw) -> dict[str, Tensor]:
        """What the step draws for each image besides whether it changes the image at all."""
        raise NotImplementedError(f"{self.name} works on one image at a time")

    def group(self, drawn: dict[str, Tensor]) -> Tensor | None:
        """Sorts the images of `for_batch`: int64 [B], small numbers come first. None: any order."""
        return None

    def for_batch(self, images: Tensor, drawn: dict[str, Tensor], mean: Tensor) -> Tensor:
        """Changes all `images`, uint8 [B,3,S,S], as `drawn` says. It may change them in place.

        `drawn` is what `draw` returned for these images, on the CPU. `mean` is the mean colour of
        the data set, float32 [1,3,1,1] on the device of the images, whole numbers in [0, 255].
        """
        raise NotImplementedError(f"{self.name} works on one image at a time")


def full_probability(settings: AugmentationSettings, flag: str) -> float:
    """The probability of a step that --augment full adds to light; `flag` is its own flag."""
    return settings.probabilities[flag] if settings.augment == "full" else 0.0


def to_device(values: Tensor, images: Tensor) -> Tensor:
    """Copies `values` to the device of `images` without waiting for it."""
    return values.to(images.device, non_blocking=True)
