"""Class activation maps of the images in report.html, as tiles of a sheet."""

import numpy as np
import torch
import torch.nn.functional as F

SIDE = 16  # pixels of a tile: the maps of images of 32 pixels


def map_tiles(maps: np.ndarray) -> np.ndarray:
    """Two maps of each image, float32 [K,2,h,w], as uint8 [K,3,16,16] in two of the colors.

    128 stands for 0. 1 and 255 are the largest value of both maps, so they have one scale.
    """
    small = F.interpolate(torch.from_numpy(maps), SIDE, mode="bilinear", antialias=True)
    limit = small.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-9)
    values = 128 + 127 * small / limit
    blue = values.mean(1, keepdim=True)  # not read; JPEG needs few bytes for it
    return torch.cat([values, blue], dim=1).round().to(torch.uint8).numpy()
