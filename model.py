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
from cifarnet.core.errors import UserError
from cifarnet.core.settings import Settings, settings_from_dict
from cifarnet.images.normalise import Normalise
from cifarnet.images.pictures import to_pixels
from cifarnet.networks.blocks import ConvBlock, SeparableBlock, _average
from cifarnet.networks.fast import use_plain_forms
from cifarnet.networks.residual import ResidualNet


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
        self.dropout = nn.Dropout(
            dropout
        )  # of c4's channels, once each is a number: the mean of zeros is zero
        self.head = nn.Linear(384, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)  # [B, 40, 32, 32]
        x = self.c2(x)  # [B, 128, 32, 32]
        x = self.c3(x)  # [B, 240, 32, 32]
        x = self.c4(x)  # [B, 384, 16, 16]
        x = self.dropout(_average(x))  # [B, 384]
        with torch.autocast(
            x.device.type, enabled=False
        ):  # 16 bits would make ties of close logits
            return self.head(x.to(self.head.weight.dtype))  # [B, classes]


Network = CIFARNet | ResidualNet


def build_model(config: Settings, classes: int) -> Network:
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
    model = build_model(settings_from_dict(trained.config), len(trained.classes))
    load_weights(model, trained.model)
    return model.eval()


def start_from(model: Network, trained: Weights, classes: Sequence[str]) -> bool:
    """Loads `trained` into `model`, running statistics too, but its head only if that tells these `classes` apart, in
    this order; whether it does. Raises `UserError` for another network."""
    same = list(trained.classes) == list(classes)
    own_head = (
        {} if same else {f"head.{name}": value for name, value in model.head.state_dict().items()}
    )
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
            raise UserError(
                f"a tensor {shown} is no picture; give uint8, or floats in [0,1], of [3,H,W] or [B,3,H,W]"
            )
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
    twin = use_plain_forms(
        copy.deepcopy(model).cpu().eval()
    )  # what is fused would be missing from the table
    table = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(table):
        torchsummary.summary(twin, (3, 32, 32), device="cpu")
    return table.getvalue().rstrip()
