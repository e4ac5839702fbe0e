"""LiteNet: more accurate and faster than CIFARNet, with 174,506 parameters for ten classes.

CIFARNet computes up to 240 channels for each of 32x32 pixels. Here the images shrink before the
channels become many, and 3x3 convolutions are depthwise. So the parameters go into more layers.
"""

import torch
from torch import Tensor, nn

from cifarnet.networks.blocks import DenseConv2d, DepthwiseSeparableConv2d, Head, channel_means
from cifarnet.networks.scaling import widened

STAGES = ((32, 2), (64, 4), (128, 2))  # channels, and blocks
EXPANSION = 1.5  # channels between the two pointwise convolutions, per channel of the block


class InvertedBlock(nn.Module):
    """depthwise 3x3 -> conv 1x1 -> BN -> ReLU -> conv 1x1 -> BN, plus the input: [B,C,H,W] -> the
    same. Sandler et al. 2018, arXiv 1801.04381, with the depthwise convolution on the fewer
    channels.

    `attention` is empty unless attention.py fills it. It comes before the addition.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        expanded = int(channels * EXPANSION)
        self.conv1 = DepthwiseSeparableConv2d(channels, expanded)
        self.bn1 = nn.BatchNorm2d(expanded)
        self.conv = DenseConv2d(expanded, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.attention = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return x + self.attention(self.bn(self.conv(y)))


class HalvingConv(nn.Sequential):
    """conv 1x1 -> max pooling -> BN: [B,in,H,W] -> [B,out,H//2,W//2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            DenseConv2d(in_channels, out_channels, 1),
            nn.MaxPool2d(2),  # before the normalisation, which then has less to do
            nn.BatchNorm2d(out_channels),
        )


class LiteNet(nn.Module):
    """Normalised images [B,3,H,W], 8x8 or larger -> logits float32 [B,classes]."""

    def __init__(self, classes: int = 10, dropout: float = 0.0, width: float = 1.0) -> None:
        """`dropout` comes before the head. `width` multiplies the channels; the comments below are
        for 1."""
        super().__init__()
        (n1, b1), (n2, b2), (n3, b3) = ((widened(n, width), blocks) for n, blocks in STAGES)
        self.stem = nn.Sequential(DenseConv2d(3, n1, 3), nn.BatchNorm2d(n1))
        self.stage1 = nn.Sequential(*(InvertedBlock(n1) for _ in range(b1)))
        self.halving1 = HalvingConv(n1, n2)
        self.stage2 = nn.Sequential(*(InvertedBlock(n2) for _ in range(b2)))
        self.halving2 = HalvingConv(n2, n3)
        self.stage3 = nn.Sequential(*(InvertedBlock(n3) for _ in range(b3)))
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
