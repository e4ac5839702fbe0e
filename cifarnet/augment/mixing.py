"""MixUp and CutMix: mixing the images of a batch in pairs, on the device."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnet.core.device import to_device
from cifarnet.core.seeds import MIXING, derived_seed
from cifarnet.settings.augmentation import AugmentationSettings


class Pairs(NamedTuple):
    """What was drawn for a batch of B images. Each image has a partner in the batch."""

    partner: Tensor  # int64 [B], on the CPU
    share: float  # of the image itself, in [0, 1]; its partner has the rest
    # Rows and columns that hold the partner: top, bottom, left, right. None: average all.
    box: tuple[int, int, int, int] | None


def _cutmix(partner: Tensor, share: float, size: int, random: np.random.Generator) -> Pairs:
    """Pairs with a rectangle. The border may cut it off: the area inside the image counts."""
    half = int(size * math.sqrt(1 - share) / 2)
    box = tuple(
        min(max(centre + end, 0), size)
        for centre in random.integers(size, size=2).tolist()
        for end in (-half, half)
    )
    top, bottom, left, right = box
    return Pairs(partner, 1 - (bottom - top) * (right - left) / size**2, box)


# By flag: makes pairs from the partners and the drawn share, for images of `size` pixels.
MIXES: dict[str, Callable[[Tensor, float, int, np.random.Generator], Pairs]] = {
    "mixup": lambda partner, share, size, random: Pairs(partner, share, None),
    "cutmix": _cutmix,
}


class Mixing:
    """Mixes the images of a batch, as --mixup, --cutmix and --mix_p say.

    MixUp averages two images (Zhang et al. 2018, arXiv 1710.09412). CutMix pastes a rectangle of
    one into the other (Yun et al. 2019, arXiv 1905.04899). Draws are a function of the seed, the
    place of the batch in the run, and the rank: one share and one permutation for each batch.
    """

    def __init__(
        self, settings: AugmentationSettings, seed: int, classes: int, rank: int = 0
    ) -> None:
        self.probability, self.seed = settings.mix_p, seed
        self.alphas = {kind: alpha for kind in MIXES if (alpha := getattr(settings, kind)) > 0}
        self.classes, self.rank = classes, rank

    def __call__(
        self, images: Tensor, labels: Tensor, place: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Mixes float images [B,3,S,S] and labels int64 [B], both on one device.

        Returns new images, and the share of each class in them, float32 [B,classes], with sums
        of 1. `place` is where the batch stands: epoch, step, and part of the batch.
        """
        pairs = self.draw(len(images), images.shape[-1], place)
        shares = F.one_hot(labels, self.classes).float()
        return (images, shares) if pairs is None else mixed(images, shares, pairs)

    def draw(self, count: int, size: int, place: tuple[int, ...]) -> Pairs | None:
        """Draws pairs for `count` images of `size` pixels; None: they are not mixed."""
        random = np.random.default_rng(derived_seed(self.seed, *place, MIXING, self.rank))
        if count < 2 or random.random() >= self.probability:
            return None
        kind = list(self.alphas)[random.integers(len(self.alphas))]
        share = random.beta(self.alphas[kind], self.alphas[kind])
        partner = torch.from_numpy(random.permutation(count))
        return MIXES[kind](partner, share, size, random)


def mixed(images: Tensor, shares: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Mixes float images [B,3,S,S] and the shares of their classes [B,classes].

    Each image keeps the larger share of itself: below a half, image and partner swap roles. A batch
    then holds the same mixed images as in the papers, in another order.
    """
    partner = to_device(pairs.partner, images.device)
    first, second = images, images[partner]
    if pairs.share < 0.5:
        first, second = second, first
    if pairs.box is None:
        result = second.lerp(first, pairs.share)
    else:
        top, bottom, left, right = pairs.box
        result = first.clone()
        result[:, :, top:bottom, left:right] = second[:, :, top:bottom, left:right]
    return result, shares[partner].lerp(shares, max(pairs.share, 1 - pairs.share))
