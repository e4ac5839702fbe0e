"""Flip: mirror an image left to right."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from cifarnet.augment.step import Draw, ImageForm, Step
from cifarnet.core.late import LateModule
from cifarnet.settings.augmentation import AugmentationSettings

A = LateModule("albumentations")


@dataclass(frozen=True)
class Flip(Step):
    """Mirrors an image left to right."""

    name = "flip"

    @classmethod
    def from_settings(cls, settings: AugmentationSettings, size: int) -> Self:
        return cls(size, 0.5 * (settings.augment != "none"))

    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        return [A.HorizontalFlip(p=self.probability)]

    def draw(self, draw: Draw) -> dict[str, Tensor]:
        return {}

    def for_batch(self, images: Tensor, drawn: dict[str, Tensor], mean: Tensor) -> Tensor:
        return images.flip(3)
