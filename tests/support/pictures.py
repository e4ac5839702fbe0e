"""Image folders, and pictures as other libraries read them."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def draw_tree(
    root: Path,
    classes: Sequence[str] = ("bar", "disc"),
    train: int = 6,
    test: int = 3,
    size: tuple[int, int] = (32, 32),
    suffix: str = "png",
) -> Path:
    """Draws an image folder at `root`. Each class is noise around its own colour."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            colour = 60 * (label % 4) + np.array([0, label, 0])
            for i in range(count):
                pixels = random.integers(0, 60, (size[1], size[0], 3)) + colour
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.{suffix}")
    return root


def seen_by_others(path: Path) -> np.ndarray:
    """The picture float64 [3,32,32] in 0 to 255, decoded and turned by OpenCV, resized by torch."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1].copy()
    images = torch.from_numpy(pixels).permute(2, 0, 1).double()[None]
    if images.shape[2:] != (32, 32):
        images = F.interpolate(images, (32, 32), mode="bicubic", antialias=True)
        images = images.round().clamp(0, 255)
    return images[0].numpy()


def write_twelve_bits(path: Path) -> None:
    """Writes a white TIFF file with 12 bits a pixel, which Pillow reads but does not write."""
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32), 65535, dtype=np.uint16)).save(file, "TIFF")
    bits, changed = (struct.pack("<HHIH", 258, 3, 1, bits) for bits in (16, 12))  # BitsPerSample
    assert file.getvalue().count(bits) == 1
    path.write_bytes(file.getvalue().replace(bits, changed))
