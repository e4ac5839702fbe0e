"""Class activation maps of the images in report.html, as tiles of a sheet."""

import base64
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F

from cifarnet.reporting.predictions import Predictions
from cifarnet.reporting.thumbnails import sheet

# Red, green, blue in [0, 255]: of the parts that raise the score of a class, and that lower it.
MAP_COLORS = ((220, 30, 50), (40, 120, 220))
SIDE = 16  # pixels of a tile: the maps of images of 32 pixels

# Images int64 [K] and two classes of each, int64 [K,2] -> their maps float32 [K,2,h,w].
Maps = Callable[[np.ndarray, np.ndarray], np.ndarray]


class MapTiles:
    """The maps of predicted class and runner-up for some of the test images, as tiles.

    `images` are their indices, int64 [K]. Without `maps` there are no tiles.
    """

    def __init__(self, maps: Maps | None, predictions: Predictions, images: np.ndarray) -> None:
        self.by_image: dict[int, np.ndarray] = {}
        if maps:
            both = (predictions.predicted[images], predictions.runner_up[images])
            tiles = map_tiles(maps(images, np.stack(both, axis=1)))
            self.by_image = dict(zip(images.tolist(), tiles, strict=True))

    def sheet(self, images: Iterable[int]) -> str:
        """The tiles of `images` as a sheet, a JPEG file in base64; empty if there are none."""
        tiles = [self.by_image[image] for image in images if self.by_image]
        return base64.b64encode(sheet(np.stack(tiles))).decode() if tiles else ""


def map_tiles(maps: np.ndarray) -> np.ndarray:
    """Two maps of each image, float32 [K,2,h,w], as uint8 [K,3,16,16] in two of the colors.

    128 stands for 0. 1 and 255 are the largest value of both maps, so they have one scale.
    """
    small = F.interpolate(torch.from_numpy(maps), SIDE, mode="bilinear", antialias=True)
    limit = small.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-9)
    values = 128 + 127 * small / limit
    blue = values.mean(1, keepdim=True)  # not read; JPEG needs few bytes for it
    return torch.cat([values, blue], dim=1).round().to(torch.uint8).numpy()
