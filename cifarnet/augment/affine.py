"""Affine: shift, scale and rotate in one interpolation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnet.augment.step import BORDERS, ImageForm, Step, uniform
from cifarnet.core.device import to_device
from cifarnet.core.late import LateModule
from cifarnet.settings.augmentation import AugmentationSettings

A, cv2 = LateModule("albumentations"), LateModule("cv2")


class Affine(Step):
    """Shifts by whole pixels, scales and rotates about the centre, by bilinear interpolation."""

    name = "affine"

    def __init__(self, settings: AugmentationSettings, size: int) -> None:
        self.size, self.probability = size, settings.probabilities["affine_p"]
        self.shift = int(settings.shift * size + 1e-9)  # pixels, the largest along each axis
        self.scales = (1 - settings.scale, 1 + settings.scale)
        self.rotations = (-settings.degrees, settings.degrees)
        self.border = BORDERS[settings.border]

    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        shifts = (-self.shift, self.shift)  # pixels: a share would be cut off towards 0
        affine = A.Affine(
            translate_px={"x": shifts, "y": shifts},
            scale=self.scales,
            keep_ratio=True,
            rotate=self.rotations,
            border_mode=cv2.BORDER_CONSTANT,
            fill=tuple(self.border * level for level in mean),
            p=self.probability,
        )
        return [affine]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`shift` int64 [B,2]: pixels to the right and down. `scale` float32 [B]: above 1 the image
        grows. `rotate` float32 [B]: degrees counter-clockwise."""
        return {
            "shift": torch.randint(-self.shift, self.shift + 1, (count, 2), generator=generator),
            "scale": uniform(*self.scales, count, generator),
            "rotate": uniform(*self.rotations, count, generator),
        }

    def for_batch(self, images: Tensor, drawn: dict[str, Tensor], mean: Tensor) -> Tensor:
        angle = drawn["rotate"].deg2rad()
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        # A matrix leads from a pixel of the result to its source; an image reaches from -1 to 1.
        inverse = turn / drawn["scale"].view(-1, 1, 1)
        origin = -inverse @ drawn["shift"].float().unsqueeze(2) * (2 / self.size)
        matrices = torch.cat([inverse, origin], 2).unsqueeze(3)  # [B,2,3,1]
        matrices = to_device(matrices, images.device)
        centres = (2 * torch.arange(self.size, device=images.device) + 1) / self.size - 1
        x, y, origin = matrices.unbind(2)  # [B,2,1]
        grid = (x * centres).unsqueeze(2) + (y * centres + origin).unsqueeze(3)  # [B,2,S,S]
        grid = grid.permute(0, 2, 3, 1)
        # grid_sample fills with zeros. The border's colour is subtracted before and added after,
        # so the zeros become that colour.
        border = self.border * mean
        values = images.float().sub_(border)
        values = F.grid_sample(values, grid, padding_mode="zeros", align_corners=False)
        return values.add_(border + 0.5).byte()
