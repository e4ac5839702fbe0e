"""A larger network, to learn from."""

import torch
from torch import Tensor, nn

from cifarnet.networks.fast import DenseConv2d, conv_norm


class PooledConv(nn.Module):
    """conv 3x3 -> BN -> maximum of each `pool` x `pool` pixels -> ReLU: [B,in,H,W] -> [B,out,H//pool,W//pool]."""

    def __init__(self, in_channels: int, out_channels: int, pool: int = 1) -> None:
        super().__init__()
        self.conv = DenseConv2d(in_channels, out_channels, 3)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.pool(conv_norm(x, self.conv, self.bn)))


class ResidualBlock(nn.Module):
    """y + conv(conv(y)), y being a convolution of x at half the size: [B,in,H,W] -> [B,out,H//2,W//2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = PooledConv(in_channels, out_channels, 2)
        self.residual = nn.Sequential(
            PooledConv(out_channels, out_channels), PooledConv(out_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.residual(x)


class ResidualNet(nn.Module):
    """A larger network, 2,494,890 parameters for ten classes, to learn from (`--teacher`); it takes about as long as
    CIFARNet, as most of its pixels are gone early. Images [B,3,H,W] of 8x8 at least -> logits, as CIFARNet."""

    def __init__(self, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.stem = PooledConv(3, 32)
        self.blocks = nn.Sequential(
            ResidualBlock(32, 64), ResidualBlock(64, 192), ResidualBlock(192, 256)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).amax((2, 3))  # [B, 256]
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.dropout(x).to(self.head.weight.dtype))  # [B, classes]
