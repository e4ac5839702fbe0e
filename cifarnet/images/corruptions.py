"""The fifteen corruptions of CIFAR-10-C at severities 1 to 5.

Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261. All constants are those of the
authors' program for images of 32 pixels, not of ImageNet-C: make_cifar_c.py, at
https://github.com/hendrycks/robustness/tree/master/ImageNet-C/create_c. Lengths are in pixels, for
larger images too, except those of `elastic_transform`. `synthetic_frost` is ours: the authors use
photographs of frost.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cifarnet.core.seeds import CORRUPTION, derived_seed
from cifarnet.images import corruption_functions as functions


class Corruption(NamedTuple):
    """A function of corruption_functions.py, and its constants by severity."""

    function: Callable[[np.ndarray, np.random.Generator, Any], np.ndarray]
    constants: dict[int, Any]


def _corruption(function: Callable[..., np.ndarray], *constants: Any) -> Corruption:
    """`constants` are those of severities 1 to 5."""
    return Corruption(function, dict(enumerate(constants, 1)))


CORRUPTIONS = {
    "gaussian_noise": _corruption(functions.gaussian_noise, 0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": _corruption(functions.shot_noise, 500, 250, 100, 75, 50),
    "impulse_noise": _corruption(functions.impulse_noise, 0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": _corruption(
        functions.defocus_blur, (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)
    ),
    "glass_blur": _corruption(
        functions.glass_blur, (0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)
    ),
    "motion_blur": _corruption(functions.motion_blur, (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": _corruption(functions.zoom_blur, 1.06, 1.11, 1.16, 1.21, 1.26),
    "snow": _corruption(
        functions.snow,
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "synthetic_frost": _corruption(
        functions.synthetic_frost, (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)
    ),
    "fog": _corruption(functions.fog, (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": _corruption(functions.brightness, 0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": _corruption(functions.contrast, 0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": _corruption(
        functions.elastic_transform,
        *((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05)),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": _corruption(functions.pixelate, 0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": _corruption(functions.jpeg_compression, 80, 65, 58, 50, 40),
    # Beside the fifteen; its severity is the quality.
    "jpeg_quality": Corruption(functions.jpeg_compression, {90: 90, 75: 75, 50: 50}),
}


def corrupt(image: np.ndarray, name: str, severity: int, seed: int, position: int) -> np.ndarray:
    """The corruption `name` of `CORRUPTIONS` of an image uint8 [3,S,S], as uint8 [3,S,S].

    The draws depend on `seed`, `name`, `severity` and the `position` of the image in its set.
    """
    draw = derived_seed(seed, position, CORRUPTION, zlib.crc32(name.encode()), severity)
    function, constants = CORRUPTIONS[name]
    rng = np.random.default_rng(draw)
    pixels = function(image.transpose(1, 2, 0), rng, constants[severity])
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255).astype(np.uint8)  # rounds down, as the authors' program
    return pixels.transpose(2, 0, 1)
