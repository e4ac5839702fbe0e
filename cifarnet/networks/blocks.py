"""Convolution blocks in their plain forms, layer by layer. `fast.use_fast_forms` replaces them by
faster forms of the same functions."""

import torch
from torch import Tensor, nn


class DenseConv2d(nn.Conv2d):
    """Convolution of stride 1 without bias: [B,in,H,W] -> [B,out,H,W]. `kernel_size` is odd. Muon
    orthogonalises the updates of these layers."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )


class DepthwiseConv2d(nn.Conv2d):
    """One k x k filter per channel, without bias: [B,C,H,W] -> [B,C,ceil(H/stride),ceil(W/stride)].
    `kernel_size` is odd. The weight is [C,1,k,k]."""

    def __init__(
        self, channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=False
        )


class DepthwiseSeparableConv2d(nn.Sequential):
    """Depthwise 3x3, then pointwise 1x1: [B,in,H,W] -> [B,out,ceil(H/stride),ceil(W/stride)].
    Howard et al. 2017, arXiv 1704.04861, without the normalisation and ReLU between the two."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__(
            DepthwiseConv2d(in_channels, 3, stride, dilation),
            DenseConv2d(in_channels, out_channels, 1),
        )


class ConvBlock(nn.Module):
    """conv 3x3 -> BN -> ReLU -> spatial dropout: [B,in,H,W] -> [B,out,H,W]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = DenseConv2d(in_channels, out_channels, 3)
        self.bn = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.bn(self.conv(x))))


class SeparableBlock(nn.Module):
    """Depthwise separable conv -> BN, plus the shortcut -> ReLU -> spatial dropout.

    The shortcut is conv 1x1 -> BN of the input; a block with a stride has none.
    [B,in,H,W] -> [B,out,ceil(H/stride),ceil(W/stride)].

    `attention` and `repeats` are empty unless attention.py or scaling.py fill them. Attention comes
    before the dropout, repeats of the block come after it.
    """

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
        self.attention = nn.Sequential()
        self.dropout = nn.Dropout2d(dropout)
        self.repeats = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        y = self.attention(torch.relu(y))
        return self.repeats(self.dropout(y))


class PooledConv(nn.Module):
    """conv 3x3 -> BN -> max pooling -> ReLU: [B,in,H,W] -> [B,out,H//pool,W//pool]."""

    def __init__(self, in_channels: int, out_channels: int, pool: int = 1) -> None:
        super().__init__()
        self.conv = DenseConv2d(in_channels, out_channels, 3)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.pool(self.bn(self.conv(x))))


class Head(nn.Linear):
    """The last layer, without autocast: [B,in] -> float32 [B,out]. 16 bits would make close logits
    equal."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def channel_means(x: Tensor) -> Tensor:
    """The mean of each channel: [B,C,H,W] -> [B,C].

    Equals `x.mean((2, 3))`. As a matrix product it takes a sixth of the time on the CPU. Exported
    files contain the plain mean, which other programs support.
    """
    if torch.compiler.is_exporting():
        return x.mean((2, 3))
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B,HW,C]; its gradient is channels_last too
    count = pixels.shape[1]
    share = 2.0 ** (1 - count.bit_length())  # about 1 / count, and exact; a sum overflows in fp16
    shares = pixels.new_full((len(x), 1, count), share)
    return torch.bmm(shares, pixels).squeeze(1) / (count * share)
