"""Flip: mirror an image left to right."""

import torch
from torch import Tensor

from cifarnet.augment.step import ImageForm, Step
from cifarnet.core.late import LateModule
from cifarnet.settings.augmentation import AugmentationSettings

A = LateModule("albumentations")


class Flip(Step):
    """Mirrors an image left to right."""

    name = "flip"

    def __init__(self, settings: AugmentationSettings, size: int) -> None:
        self.probability = settings.flip_p

    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        return [A.HorizontalFlip(p=self.probability)]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def for_batch(self, images: Tensor, drawn: dict[str, Tensor], mean: Tensor) -> Tensor:
        return images.flip(3)
