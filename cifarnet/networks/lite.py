"""LiteNet: more accurate and faster than CIFARNet, with 174,506 parameters for ten classes.

CIFARNet computes 240 channels at 32x32 pixels. LiteNet computes at most 64 there, and more where
the images are smaller. So it has more layers with about as many parameters.
"""

import torch
from torch import Tensor, nn

from cifarnet.networks.blocks import DenseConv2d, DepthwiseSeparableConv2d, Head, channel_means
from cifarnet.networks.scaling import widened

EXPANSION = 1.5  # hidden channels of a block, as a multiple of its channels


class InvertedResidual(nn.Module):
    """depthwise 3x3 -> conv 1x1 -> BN -> ReLU -> conv 1x1 -> BN, plus the input: [B,C,H,W] -> the
    same.

    As in Sandler et al. 2018, arXiv 1801.04381, but the depthwise convolution comes first, where
    the channels are fewer. `attention` is empty unless attention.py fills it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(channels * EXPANSION)
        self.conv1 = DepthwiseSeparableConv2d(channels, hidden)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv = DenseConv2d(hidden, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.attention = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return x + self.attention(self.bn(self.conv(y)))


class Downsample(nn.Sequential):
    """conv 1x1 -> max pooling -> BN: [B,in,H,W] -> [B,out,H//2,W//2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            DenseConv2d(in_channels, out_channels, 1),
            nn.MaxPool2d(2),  # before BN, which then has a quarter of the values
            nn.BatchNorm2d(out_channels),
        )


def _stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(InvertedResidual(channels) for _ in range(blocks)))


class LiteNet(nn.Module):
    """Normalised images [B,3,H,W], 8x8 or larger -> logits float32 [B,classes]."""

    def __init__(self, classes: int = 10, dropout: float = 0.0, width: float = 1.0) -> None:
        """`dropout` comes before the head. `width` multiplies the channels; the comments below are
        for 1."""
        super().__init__()
        n1, n2, n3 = (widened(channels, width) for channels in (32, 64, 128))
        self.stem = nn.Sequential(DenseConv2d(3, n1, 3), nn.BatchNorm2d(n1))
        self.stage1 = _stage(n1, 2)
        self.halving1 = Downsample(n1, n2)
        self.stage2 = _stage(n2, 4)
        self.halving2 = Downsample(n2, n3)
        self.stage3 = _stage(n3, 2)
        self.dropout = nn.Dropout(dropout)
        self.head = Head(n3, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(channel_means(self.features(x)))  # [B, 128]
        return self.head(x)  # [B, classes]

    def features(self, x: Tensor) -> Tensor:
        """What the head averages, [B, 128, H/4, W/4]."""
        x = self.stage1(self.stem(x))  # [B, 32, 32, 32]
        x = self.stage2(self.halving1(x))  # [B, 64, 16, 16]
        return self.stage3(self.halving2(x))  # [B, 128, 8, 8]
