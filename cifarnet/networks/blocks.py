"""Convolution blocks."""

import torch
from torch import Tensor, nn

from cifarnet.networks.fast import DenseConv2d, DepthwiseSeparableConv2d, norm_relu_dropout


class ConvBlock(nn.Module):
    """conv 3x3 -> BN -> ReLU -> spatial dropout: [B,in,H,W] -> [B,out,H,W]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = DenseConv2d(in_channels, out_channels, 3)
        self.bn = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return norm_relu_dropout([(x, self.conv, self.bn)], self.dropout)


class SeparableBlock(nn.Module):
    """Depthwise separable conv -> BN, plus a 1x1 conv -> BN of the input (`shortcut`) -> ReLU -> spatial dropout:
    [B,in,H,W] -> [B,out,ceil(H/stride),ceil(W/stride)]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float,
        stride: int = 1,
        dilation: int = 1,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.conv = DepthwiseSeparableConv2d(in_channels, out_channels, stride, dilation)
        self.bn = nn.BatchNorm2d(out_channels)
        self.shortcut = None
        if shortcut:
            self.shortcut = nn.Sequential(
                DenseConv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels)
            )
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        depthwise, pointwise = self.conv
        branches = [(depthwise(x), pointwise, self.bn)]
        if self.shortcut is not None:
            branches.append((x, *self.shortcut))
        return norm_relu_dropout(branches, self.dropout)


def _average(x: Tensor) -> Tensor:
    """The mean of each channel, [B,C,H,W] -> [B,C], as a product of matrices: a sixth of the time of `mean`."""
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B,HW,C], and a gradient that is channels_last
    return (
        torch.bmm(pixels.new_ones(len(x), 1, pixels.shape[1]), pixels).squeeze(1) / pixels.shape[1]
    )
