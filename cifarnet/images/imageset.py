"""Images in memory, their splits and parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cifarnet.core.errors import UserError

SIZE = 32  # pixels: height and width of every image


SPLIT_SEED = (
    20250  # of all splits and parts: fixed, so that runs with other seeds see the same images
)


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N,3,32,32], their labels int64 [N], and the names that the labels count."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> "ImageSet":
        """The images at the indices `chosen`, in that order, or where `chosen` is a mask, those that it is true for."""
        where = torch.from_numpy(chosen)
        return ImageSet(self.images[where], self.labels[where], self.classes)


@dataclass(frozen=True)
class Splits:
    """What a run trains on, selects by and reports on, and the channel statistics to normalise with, in [0, 1]."""

    name: str
    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def has_statistics(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether the channel statistics are these, but for rounding: what tells one folder's images from another's."""
        return np.allclose([*self.mean, *self.std], [*mean, *std], rtol=1e-6, atol=0)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images [N,3,H,W], in [0, 1]; no deviation is 0."""
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)]
    ).double()  # [3,256]
    share = counts / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    std = (share @ values**2 - mean**2).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _rank_in_class(labels: Tensor) -> np.ndarray:
    """For each image its place, int64 [N], in a fixed random order of the images of its class."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    sizes = np.bincount(labels.numpy())
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.concatenate([np.arange(size) for size in sizes])
    return ranks


def limited(images: ImageSet, limit: int, flag: str) -> ImageSet:
    """A fixed part of `limit` images, balanced over the classes as far as each reaches; all for 0.

    Raises `UserError`, which names `flag`, for fewer images than classes.
    """
    if limit == 0 or limit >= len(images):
        return images
    if limit < len(images.classes):
        raise UserError(
            f"{flag} {limit} is fewer than the {len(images.classes)} classes; take one image each at least"
        )
    order = np.lexsort((images.labels.numpy(), _rank_in_class(images.labels)))
    return images.take(np.sort(order[:limit]))


def hold_back(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet | None]:
    """(the rest, `fraction` of each class, rounded down); (all, None) for 0. Raises `UserError` where that is none."""
    if fraction == 0:
        return images, None
    sizes = np.bincount(images.labels.numpy(), minlength=len(images.classes))
    held = _rank_in_class(images.labels) < np.floor(fraction * sizes + 1e-9)[images.labels.numpy()]
    if not held.any() or held.all():
        what = "no image" if not held.any() else "every image"
        raise UserError(
            f"--val_fraction {fraction:g} holds back {what} of classes this small; choose another"
        )
    return images.take(~held), images.take(held)
