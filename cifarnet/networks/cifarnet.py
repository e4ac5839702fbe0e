"""CIFARNet: four convolution blocks and a linear head; 174,762 parameters for ten classes."""

from collections.abc import Sequence

from torch import Tensor, nn

from cifarnet.networks.blocks import ConvBlock, Head, SeparableBlock, channel_means
from cifarnet.networks.scaling import enlarged, widened


class CIFARNet(nn.Module):
    """Normalised images [B,3,H,W] of any size -> logits float32 [B,classes]. The receptive field
    before the pooling is 15x15 pixels."""

    def __init__(
        self,
        classes: int = 10,
        dropout: Sequence[float] = (0.0,) * 4,
        width: float = 1.0,
        enlarge: float = 1.0,
    ) -> None:
        """`dropout` holds a rate for each block. `width` multiplies the channels, `enlarge` the
        sides of the images; the comments below are for 1."""
        super().__init__()
        n1, n2, n3, n4 = (widened(channels, width) for channels in (40, 128, 240, 384))
        self.enlarge, self.enlarged = enlarge, enlarged
        self.c1 = ConvBlock(3, n1, dropout[0])
        self.c2 = SeparableBlock(n1, n2, dropout[1])
        self.c3 = SeparableBlock(n2, n3, dropout[2], dilation=4)
        self.c4 = SeparableBlock(n3, n4, 0.0, stride=2, shortcut=False)
        self.dropout = nn.Dropout(dropout[3])  # c4's spatial dropout, cheaper after the pooling
        self.head = Head(n4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(channel_means(self.features(x)))  # [B, 384]
        return self.head(x)  # [B, classes]

    def features(self, x: Tensor) -> Tensor:
        """What the head averages, [B, 384, H/2, W/2]."""
        if self.enlarge != 1:
            x = self.enlarged(x, self.enlarge)
        x = self.c1(x)  # [B, 40, 32, 32]
        x = self.c2(x)  # [B, 128, 32, 32]
        x = self.c3(x)  # [B, 240, 32, 32]
        return self.c4(x)  # [B, 384, 16, 16]
