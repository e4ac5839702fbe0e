"""Scaling of CIFARNet: more channels, repeated blocks, larger images. Tan & Le 2019, arXiv
1905.11946 (EfficientNet), scale the three together. `NetworkSettings.scaling` holds the factors."""

import math
from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from cifarnet.networks.blocks import SeparableBlock

GRID = 4  # sides of enlarged images are multiples of it: C3's dilation, and twice C4's stride


def widened(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a multiple of 8; at least 8."""
    return max(8, math.floor(channels * width / 8 + 0.5) * 8)


def enlarged_side(side: int, factor: float) -> int:
    """`side` times `factor`, rounded to a multiple of 4; unchanged for a factor of 1."""
    return side if factor == 1 else max(GRID, round(side * factor / GRID) * GRID)


def enlarged(images: Tensor, factor: float) -> Tensor:
    """Resizes `images` [B,3,H,W] to sides of `enlarged_side` pixels, bilinearly."""
    sides = [enlarged_side(side, factor) for side in images.shape[2:]]
    return F.interpolate(images, sides, mode="bilinear")


def repeats(blocks: int, depth: float) -> list[int]:
    """The repeats of each of `blocks` blocks, so that there are `depth` times as many, rounded up.

    If they cannot be divided evenly, the last blocks, where the images are smallest, get more:
    3 blocks of depth 1.2 are 4, and the third one is repeated.
    """
    extra = math.ceil(blocks * depth) - blocks
    return [(extra + index) // blocks for index in range(blocks)]


def deepen(blocks: Collection[SeparableBlock], depth: float) -> None:
    """Appends their repeats to `blocks`, in place: see `repeats`. A repeat has stride 1 and the
    channels of its block. Its shortcut is its input, without weights."""
    for block, count in zip(blocks, repeats(len(blocks), depth), strict=True):
        channels, dropout = block.bn.num_features, block.dropout.p
        dilation = block.conv[0].dilation[0]
        for _ in range(count):
            repeat = SeparableBlock(channels, channels, dropout, dilation=dilation, shortcut=False)
            repeat.shortcut = nn.Identity()
            block.repeats.append(repeat)
