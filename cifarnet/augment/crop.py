"""Crop: pad all sides, then cut out the image's own size anywhere."""

import torch
from torch import Tensor

from cifarnet.augment.step import BORDERS, ImageForm, Step
from cifarnet.core.device import to_device
from cifarnet.core.late import LateModule
from cifarnet.images.imageset import SIZE
from cifarnet.settings.augmentation import AugmentationSettings

A, cv2 = LateModule("albumentations"), LateModule("cv2")


class Crop(Step):
    """Moves an image by at most `pad` pixels along each axis."""

    name = "crop"

    def __init__(self, settings: AugmentationSettings, size: int) -> None:
        self.size, self.probability = size, 1.0
        self.pad = round(settings.pad * size / SIZE)  # pixels on each side
        self.border = BORDERS[settings.border]

    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        width = self.size + 2 * self.pad
        fill = tuple(self.border * level for level in mean)
        return [
            A.PadIfNeeded(width, width, border_mode=cv2.BORDER_CONSTANT, fill=fill),
            A.RandomCrop(self.size, self.size, p=self.probability),
        ]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`corner` int64 [B,2]: row and column of the crop in the padded image."""
        return {"corner": torch.randint(2 * self.pad + 1, (count, 2), generator=generator)}

    def for_batch(self, images: Tensor, drawn: dict[str, Tensor], mean: Tensor) -> Tensor:
        """Copies whole rows of pixels from the padded images."""
        count, pad, size = len(images), self.pad, self.size
        width, inside = size + 2 * pad, slice(pad, pad + size)
        padded = (self.border * mean).byte().repeat(count, 1, width, width)
        padded[:, :, inside, inside] = images
        row, column = to_device(drawn["corner"], images.device).unsqueeze(2).unbind(1)  # [B,1]
        rows = torch.arange(size, device=images.device) + row  # [B,S]
        planes = torch.arange(3 * count, device=images.device).view(-1, 3, 1)  # [B,3,1]
        first = (planes * width + rows[:, None]) * width + column[:, None]  # [B,3,S]
        pixels = padded.flatten().unfold(0, size, 1)  # `size` pixels from each one on
        return pixels.index_select(0, first.flatten()).view_as(images)
