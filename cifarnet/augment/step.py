"""What an augmentation step is: its draws, its form for one image and its form for a batch."""

import zlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from cifarnet.settings.augmentation import AugmentationSettings

BORDERS = {"mean": 1, "black": 0}  # by --border: what the mean colour is multiplied by


class ImageForm(Protocol):
    """A transform of one image that draws for itself, as those of albumentations."""

    def set_random_seed(self, seed: int) -> None: ...

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        """Returns a changed copy of `image` uint8 [H,W,3], under the key "image"."""


class Step(ABC):
    """A change of images, made with `probability`. Both forms make the same change.

    A step that works on one image at a time only leaves out `draw` and `for_batch`.
    """

    name: ClassVar[str]
    probability: float  # in [0, 1]

    @property
    def number(self) -> int:
        """A part of the step's seed. It depends on the name alone: steps draw independently."""
        return zlib.crc32(self.name.encode())

    @abstractmethod
    def __init__(self, settings: AugmentationSettings, size: int) -> None:
        """Takes its ranges from `settings`, for images of `size` pixels."""

    @abstractmethod
    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        """Transforms that make the change one after the other, with the step's probability.
        `mean` is the mean colour of the data set, in [0, 255]."""

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws for `count` images, on the CPU, besides whether they change at all."""
        raise NotImplementedError(f"{self.name} works on one image at a time")

    def for_batch(self, images: Tensor, drawn: dict[str, Tensor], mean: Tensor) -> Tensor:
        """Changes all `images`, uint8 [B,3,S,S], perhaps in place, as `draw` has `drawn`.
        `mean` is the mean colour of the data set, float32 [1,3,1,1], whole numbers in [0, 255]."""
        raise NotImplementedError(f"{self.name} works on one image at a time")


def uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Draws numbers in [low, high): float32 [count]."""
    return torch.empty(count).uniform_(low, high, generator=generator)
