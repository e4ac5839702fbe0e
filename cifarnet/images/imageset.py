"""Images in memory: sets, splits, balanced parts and channel statistics."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnet.core.errors import UserError

SIZE = 32  # pixels: height and width of every image, unless --image_size says otherwise
MOST_LISTED = 20  # classes
SPLIT_SEED = 20250  # fixed: runs with different --seed split the images in the same way


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, with their classes."""

    images: Tensor  # uint8 [N,3,S,S]
    labels: Tensor  # int64 [N]; label i means `classes[i]`
    classes: tuple[str, ...]
    paths: np.ndarray | None = None  # see `names`

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> "ImageSet":
        """Selects images by index (int64, in this order) or by mask (bool [N])."""
        where = torch.from_numpy(chosen)
        return ImageSet(self.images[where], self.labels[where], self.classes, self.names[chosen])

    @property
    def sha256(self) -> str:
        """A checksum of pixels and labels, in their order."""
        digest = hashlib.sha256(self.images.contiguous().numpy())
        digest.update(self.labels.contiguous().numpy())
        return digest.hexdigest()

    @property
    def names(self) -> np.ndarray:
        """The printable paths of the images, str [N]; without files their numbers in the whole
        training or test set, int64 [N]."""
        return np.arange(len(self)) if self.paths is None else self.paths


class Dataset(NamedTuple):
    """A data set as it was read, before images are limited and held out."""

    name: str
    train: ImageSet
    val: ImageSet | None  # None: it has no validation images of its own
    test: ImageSet
    # Published channel means and deviations, in [0, 1]. None: those of the training images.
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    drawn_test: bool = False  # see `Splits`


@dataclass(frozen=True)
class Splits:
    """The images of a run."""

    name: str
    train: ImageSet
    val: ImageSet | None  # selects the model; None: `test` selects it
    test: ImageSet
    mean: tuple[float, float, float]  # of each channel, in [0, 1], to normalise with
    std: tuple[float, float, float]
    drawn_test: bool = False  # drawn from one folder: adding files changes the test images
    calibration_images: str = ""  # those of --calibrate, as `calibrated_on` says it; not in `test`

    def same_normalization(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Compares channel statistics, up to rounding: other statistics mean other images."""
        return np.allclose([*self.mean, *self.std], [*mean, *std], rtol=1e-6, atol=0)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images [N,3,H,W], in [0, 1].
    Deviations are at least 1/255, so that one can divide by them."""
    counts = [images[:, c].flatten().bincount(minlength=256) for c in range(3)]
    share = torch.stack(counts).double() / counts[0].sum()  # [3,256]
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    std = (share @ values**2 - mean**2).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def limited(images: ImageSet, limit: int, flag: str) -> ImageSet:
    """Returns a fixed part of `limit` images, balanced over the classes, or all images for 0.
    Raises `UserError`, naming `flag`, if `limit` is below the number of classes."""
    if limit == 0 or limit >= len(images):
        return images
    least = len(images.classes)
    if limit < least:
        raise UserError(
            f"{flag} {limit} is fewer images than the {least} classes; use {least} or more"
        )
    order = np.lexsort((images.labels.numpy(), _rank_in_class(images.labels)))
    return images.take(np.sort(order[:limit]))


def split_holdout(
    images: ImageSet, fraction: float, flag: str = "--val_fraction"
) -> tuple[ImageSet, ImageSet | None]:
    """Splits off a fixed `fraction` of each class, rounded down: (rest, held out or None for 0).
    Raises `UserError`, naming `flag`, if either part would be empty."""
    if fraction == 0:
        return images, None
    held = holdout_mask(images.labels, fraction, flag)
    return images.take(~held), images.take(held)


def holdout_mask(labels: Tensor, fraction: float, flag: str) -> np.ndarray:
    """Chooses a fixed `fraction` of each class, rounded down: a mask, bool [N].
    Raises `UserError`, naming `flag`, if it would hold out all images, or none."""
    sizes = np.bincount(labels.numpy())
    held = _rank_in_class(labels) < np.floor(fraction * sizes + 1e-9)[labels.numpy()]
    if not held.any() or held.all():
        what, change = ("every image", "lower") if held.any() else ("no image", "raise")
        raise UserError(f"{flag} {fraction:g} holds out {what}; {change} it")
    return held


def resized(images: Tensor, size: int) -> Tensor:
    """`images` uint8 [N,3,H,W] with sides of `size` pixels, resized as Pillow does it."""
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.cpu(), (size, size), mode="bicubic", antialias=True)  # CUDA has no uint8
        for part in images.split(1000)  # of all at once the intermediate results are too large
    ]
    return torch.cat(parts).to(images.device)


def describe_classes(images: ImageSet) -> list[str]:
    """Returns lines on the images of each class, with a warning if a class has far too few."""
    of_classes = images.labels.bincount(minlength=len(images.classes)).tolist()
    counts = dict(zip(images.classes, of_classes, strict=True))
    least, most = min(counts, key=counts.get), max(counts, key=counts.get)
    if counts[least] == counts[most]:
        numbers = f"{counts[most]} each"
    elif len(counts) <= MOST_LISTED:
        numbers = ", ".join(f"{name} {count}" for name, count in counts.items())
    else:
        numbers = f"from {counts[least]} ({least}) to {counts[most]} ({most})"
    lines = [f"training images of the {len(counts)} classes: {numbers}"]
    if counts[most] >= 10 * counts[least]:
        lines.append(
            f"warning: {most} has {counts[most]} training images and {least} only "
            f"{counts[least]}; --class_weights balanced makes all classes count the same"
        )
    return lines


def _rank_in_class(labels: Tensor) -> np.ndarray:
    """The position of each image, int64 [N], in a fixed random order of its class."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    sizes = np.bincount(labels.numpy())
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.concatenate([np.arange(size) for size in sizes])
    return ranks
