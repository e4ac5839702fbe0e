"""Normalisation on the device."""

import torch
from torch import Tensor

Batch = tuple[
    Tensor, Tensor
]  # images float32 [B,3,H,W], channels_last, normalised; labels int64 [B]; on the device


class Normalise:
    """uint8 images [B,3,H,W] -> float32 on `device`, channels_last, of mean 0 and deviation 1 by the data set's
    channel statistics `mean` and `std`, in [0, 1]."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        self.device = device
        self.shift = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255
        self.factor = 1 / (torch.tensor(std, device=device).view(1, -1, 1, 1) * 255)

    def __call__(self, images: Tensor) -> Tensor:
        images = (
            images.to(self.device, non_blocking=True).float().sub_(self.shift).mul_(self.factor)
        )
        return images.contiguous(
            memory_format=torch.channels_last
        )  # last: half the time of the other way round
