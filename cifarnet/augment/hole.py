"""Hole: fill a square inside the image with the mean colour."""

import torch
from torch import Tensor

from cifarnet.augment.step import ImageForm, Step
from cifarnet.core.device import to_device
from cifarnet.core.late import LateModule
from cifarnet.images.imageset import SIZE
from cifarnet.settings.augmentation import AugmentationSettings

A = LateModule("albumentations")


class Hole(Step):
    """Fills a square inside the image (DeVries and Taylor 2017, arXiv 1708.04552)."""

    name = "hole"

    def __init__(self, settings: AugmentationSettings, size: int) -> None:
        self.size, self.probability = size, settings.probabilities["hole_p"]
        self.side = round(settings.hole * size / SIZE)  # pixels, height and width of the hole

    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        hole = A.CoarseDropout(
            num_holes_range=(1, 1),
            hole_height_range=(self.side, self.side),
            hole_width_range=(self.side, self.side),
            fill=mean,
            p=self.probability,
        )
        return [hole]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`corner` int64 [B,2]: row and column of the hole's first pixel."""
        ends = self.size - self.side + 1
        return {"corner": torch.randint(ends, (count, 2), generator=generator)}

    def for_batch(self, images: Tensor, drawn: dict[str, Tensor], mean: Tensor) -> Tensor:
        pixels = torch.arange(self.side, device=images.device)
        row, column = (to_device(drawn["corner"], images.device)[:, :, None] + pixels).unbind(1)
        inside = (row[:, :, None] * self.size + column[:, None, :]).flatten(1)  # [B,side*side]
        each = torch.arange(len(images), device=images.device)[:, None]
        images.flatten(2)[each, :, inside] = mean.byte().flatten()
        return images
