"""ResidualNet: a larger network, meant as a teacher."""

from torch import Tensor, nn

from cifarnet.networks.blocks import Head, PooledConv


class ResidualBlock(nn.Module):
    """Halves the image, then adds two convolutions: [B,in,H,W] -> [B,out,H//2,W//2]."""

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
    """Normalised images [B,3,H,W], 8x8 or larger -> logits float32 [B,classes].

    2,494,890 parameters for ten classes. An epoch takes about as long as one of CIFARNet: the
    images are small after the first block.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.stem = PooledConv(3, 32)
        self.blocks = nn.Sequential(
            ResidualBlock(32, 64), ResidualBlock(64, 192), ResidualBlock(192, 256)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = Head(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # [B, 32, 32, 32]
        x = self.blocks(x)  # [B, 256, 4, 4]
        x = self.dropout(x.amax((2, 3)))  # [B, 256]
        return self.head(x)  # [B, classes]
