"""CIFARNet: four convolution blocks and a linear head, 174,762 parameters for ten classes; and a network to teach it."""

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchsummary
from PIL import Image
from torch import Tensor, nn

from cifarnet.checkpoints.weights import Weights, read_weights
from cifarnet.core.settings import TrainConfig, UserError, config_from_dict
from cifarnet.images.folder import to_pixels
from cifarnet.networks.fast import DenseConv2d, DepthwiseSeparableConv2d, conv_norm, norm_relu_dropout, use_plain_forms
from data import Normalise


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
            self.shortcut = nn.Sequential(DenseConv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        depthwise, pointwise = self.conv
        branches = [(depthwise(x), pointwise, self.bn)]
        if self.shortcut is not None:
            branches.append((x, *self.shortcut))
        return norm_relu_dropout(branches, self.dropout)


class CIFARNet(nn.Module):
    """Images [B,3,H,W] (normalised floats; 32x32 in training) -> logits [B,classes], in 32 bits under autocast too.

    The receptive field before pooling is 15x15 pixels; the pooling makes any H and W possible.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.c1 = ConvBlock(3, 40, dropout)
        self.c2 = SeparableBlock(40, 128, dropout)
        self.c3 = SeparableBlock(128, 240, dropout, dilation=4)
        self.c4 = SeparableBlock(240, 384, 0.0, stride=2, shortcut=False)
        self.dropout = nn.Dropout(dropout)  # of c4's channels, once each is a number: the mean of zeros is zero
        self.head = nn.Linear(384, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)  # [B, 40, 32, 32]
        x = self.c2(x)  # [B, 128, 32, 32]
        x = self.c3(x)  # [B, 240, 32, 32]
        x = self.c4(x)  # [B, 384, 16, 16]
        x = self.dropout(_average(x))  # [B, 384]
        with torch.autocast(x.device.type, enabled=False):  # 16 bits would make ties of close logits
            return self.head(x.to(self.head.weight.dtype))  # [B, classes]


def _average(x: Tensor) -> Tensor:
    """The mean of each channel, [B,C,H,W] -> [B,C], as a product of matrices: a sixth of the time of `mean`."""
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B,HW,C], and a gradient that is channels_last
    return torch.bmm(pixels.new_ones(len(x), 1, pixels.shape[1]), pixels).squeeze(1) / pixels.shape[1]


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
        self.residual = nn.Sequential(PooledConv(out_channels, out_channels), PooledConv(out_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.residual(x)


class ResidualNet(nn.Module):
    """A larger network, 2,494,890 parameters for ten classes, to learn from (`--teacher`); it takes about as long as
    CIFARNet, as most of its pixels are gone early. Images [B,3,H,W] of 8x8 at least -> logits, as CIFARNet."""

    def __init__(self, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.stem = PooledConv(3, 32)
        self.blocks = nn.Sequential(ResidualBlock(32, 64), ResidualBlock(64, 192), ResidualBlock(192, 256))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).amax((2, 3))  # [B, 256]
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.dropout(x).to(self.head.weight.dtype))  # [B, classes]


Network = CIFARNet | ResidualNet


def build_model(config: TrainConfig, classes: int) -> Network:
    """The network that `config` asks for, with freshly drawn weights, laid out channels_last."""
    network = ResidualNet if config.network == "residual" else CIFARNet
    return network(classes, config.dropout).to(memory_format=torch.channels_last)


def load_weights(model: Network, weights: dict[str, Any]) -> None:
    """Loads a state_dict into `model`. Raises `UserError` where it is another network's."""
    try:
        model.load_state_dict(weights)
    except (AttributeError, RuntimeError):  # names and shapes; values that are no tensors
        raise UserError(
            f"these are the weights of another network than this {type(model).__name__}; use others, or another --network"
        ) from None


def restore(trained: Weights) -> Network:
    """The network that `trained` holds, on the CPU, in evaluation mode. Raises `UserError` for another network."""
    model = build_model(config_from_dict(trained.config), len(trained.classes))
    load_weights(model, trained.model)
    return model.eval()


def start_from(model: Network, trained: Weights, classes: Sequence[str]) -> bool:
    """Loads `trained` into `model`, running statistics too, but its head only if that tells these `classes` apart, in
    this order; whether it does. Raises `UserError` for another network."""
    same = list(trained.classes) == list(classes)
    own_head = {} if same else {f"head.{name}": value for name, value in model.head.state_dict().items()}
    load_weights(model, trained.model | own_head)
    return same


def load_pretrained(
    name: str | Path,
) -> tuple[Network, tuple[str, ...], Callable[[Image.Image | Tensor], Tensor]]:
    """A trained network by the name of a result (results/<name>/weights.safetensors beside this file), or by the path
    of a file that export.py wrote: the network, on the CPU in evaluation mode; its class names; and `normalise`.

    `normalise` makes what the network takes, float32 [B,3,H,W], of a picture: a PIL image of any size and mode, made
    32x32 as in training (B is 1); or a tensor [3,H,W] or [B,3,H,W], uint8 or floats in [0,1], whose size stays.
    Raises `UserError`; so does `normalise` for other tensors.
    """
    trained = read_weights(name if isinstance(name, str) else str(name.absolute()))

    def normalise(picture: Image.Image | Tensor) -> Tensor:
        pixels = picture if isinstance(picture, Tensor) else torch.from_numpy(to_pixels(picture))
        in_range = pixels.dtype is torch.uint8 or pixels.is_floating_point()
        if not in_range or pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
            shown = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
            raise UserError(f"a tensor {shown} is no picture; give uint8, or floats in [0,1], of [3,H,W] or [B,3,H,W]")
        if pixels.is_floating_point() and not ((pixels >= 0) & (pixels <= 1)).all():
            raise UserError(
                "a tensor of floats outside [0,1] is no picture; divide bytes by 255, or give them as uint8"
            )
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        return Normalise(trained.mean, trained.std, pixels.device)(
            pixels * 255 if pixels.is_floating_point() else pixels
        )

    return restore(trained), tuple(trained.classes), normalise


def parameter_count(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def model_table(model: nn.Module) -> str:
    """torchsummary's table of layers, output shapes and parameters; neither `model` nor a random state changes."""
    twin = use_plain_forms(copy.deepcopy(model).cpu().eval())  # what is fused would be missing from the table
    table = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(table):
        torchsummary.summary(twin, (3, 32, 32), device="cpu")
    return table.getvalue().rstrip()
