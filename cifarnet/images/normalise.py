"""Normalising images on the device."""

import torch
from torch import Tensor

from cifarnet.core.device import to_device

# Images float32 [B,3,H,W], channels_last, normalised; labels int64 [B]. Both are on the device.
Batch = tuple[Tensor, Tensor]


class Normalise:
    """Normalises uint8 images [B,3,H,W] by channel means and deviations, both in [0, 1].
    Returns float32 on `device`, in channels_last layout."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        self.device = device
        self.shift = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255
        self.factor = 1 / (torch.tensor(std, device=device).view(1, -1, 1, 1) * 255)

    def __call__(self, images: Tensor) -> Tensor:
        images = to_device(images, self.device).float()
        images = images.sub_(self.shift).mul_(self.factor)
        # Changing the layout last takes half the time of changing it first.
        return images.contiguous(memory_format=torch.channels_last)
