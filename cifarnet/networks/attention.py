"""Attention modules. They multiply a feature map by weights for its channels or positions.

Each maps [B,C,H,W] to [B,C,H,W]; the weights are in (0, 1). A block of CIFARNet applies its
attention after its last activation and before its dropout, so attention sees the sum with the
shortcut, and all channels. A block of LiteNet applies it before the input is added. Each module is
the formula of its paper, without the biases and normalisations that some published code adds.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cifarnet.networks.blocks import SeparableBlock, channel_means
from cifarnet.networks.lite import InvertedResidual

REDUCTION, MIN_HIDDEN = 16, 8  # hidden channels of se and cbam: C/16, but at least 8
EPSILON = 1e-4  # lambda in the paper of SimAM


class Eca(nn.Module):
    """Efficient channel attention: a convolution over the means of neighbouring channels.

    The kernel size is the odd number nearest to (log2(C) + 1) / 2; the larger one if two are.
    Wang et al. 2020, arXiv 1910.03151.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel_size = 2 * math.floor((math.log2(channels) + 1) / 4) + 1
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = channel_means(x)[:, None]  # [B, 1, C]
        return x * torch.sigmoid(self.conv(means)[:, 0, :, None, None])


class SqueezeExcitation(nn.Module):
    """Channel attention: two linear layers, C -> C/16 (at least 8) -> C, of the channel means. Hu
    et al. 2018, arXiv 1709.01507."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = _two_layers(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.layers(channel_means(x))[:, :, None, None])


class SimAm(nn.Module):
    """Weights each value by its distance from the mean of its channel. It has no parameters.

    The variance divides by the number of pixels, as in equation 5 of the paper. The code of the
    paper divides by one less. Yang et al. 2021, proceedings.mlr.press/v139/yang21o.html.
    """

    def forward(self, x: Tensor) -> Tensor:
        squares = (x - x.mean((2, 3), keepdim=True)).square()
        variance = squares.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(squares / (4 * (variance + EPSILON)) + 0.5)


class SpatialAttention(nn.Module):
    """The second part of CBAM: a 7x7 convolution of the mean and the maximum over the channels. Woo
    et al. 2018, arXiv 1807.06521."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)  # [B,2,H,W]
        return x * torch.sigmoid(self.conv(pooled))


class Cbam(nn.Module):
    """Channel attention from means and maxima, then `SpatialAttention`. Means and maxima go through
    the same two linear layers. Woo et al. 2018, arXiv 1807.06521."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = _two_layers(channels)
        self.spatial = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([channel_means(x), x.amax((2, 3))])  # [2, B, C]
        x = x * torch.sigmoid(self.layers(pooled).sum(0)[:, :, None, None])
        return self.spatial(x)


def _two_layers(channels: int) -> nn.Sequential:
    hidden = max(MIN_HIDDEN, channels // REDUCTION)
    return nn.Sequential(
        nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
    )


ATTENTION: dict[str, Callable[[int], nn.Module]] = {  # by --attention: channels -> module
    "eca": Eca,
    "se": SqueezeExcitation,
    "simam": lambda channels: SimAm(),
    "cbam": Cbam,
    "spatial": lambda channels: SpatialAttention(),
}


def add_attention(blocks: Iterable[SeparableBlock | InvertedResidual], name: str) -> None:
    """Adds the attention `name` to each of `blocks`, in place."""
    for block in blocks:
        block.attention.append(ATTENTION[name](block.bn.num_features))
