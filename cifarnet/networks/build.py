"""The networks by name, and building one from its settings."""

from collections.abc import Callable

import torch
from torch import nn

from cifarnet.networks.attention import add_attention
from cifarnet.networks.cifarnet import CIFARNet
from cifarnet.networks.fast import use_fast_forms
from cifarnet.networks.lite import LiteNet
from cifarnet.networks.residual import ResidualNet
from cifarnet.networks.scaling import deepen
from cifarnet.settings.network import NetworkSettings


def _cifarnet(settings: NetworkSettings, classes: int) -> nn.Module:
    """Repeats and attention come last: the other weights are those of the published network."""
    depth, width, enlarge = settings.scaling
    model = CIFARNet(classes, settings.dropouts, width, enlarge)
    deepen((model.c2, model.c3, model.c4), depth)
    for number in settings.attended:
        block = getattr(model, f"c{number}")
        add_attention([block, *block.repeats], settings.attention)
    return model


def _residual(settings: NetworkSettings, classes: int) -> nn.Module:
    return ResidualNet(classes, settings.dropouts[-1])


def _lite(settings: NetworkSettings, classes: int) -> nn.Module:
    model = LiteNet(classes, settings.dropouts[-1], settings.width)
    if settings.attention != "none":
        add_attention([*model.stage1, *model.stage2, *model.stage3], settings.attention)
    return model


NETWORKS: dict[str, Callable[[NetworkSettings, int], nn.Module]] = {  # by --network
    "cifarnet": _cifarnet,
    "lite": _lite,
    "residual": _residual,
}


def build_model(settings: NetworkSettings, classes: int) -> nn.Module:
    """The network that `settings` describe, with fresh random weights, in channels_last layout. It
    takes normalised images float32 [B,3,H,W] and gives logits float32 [B,classes]."""
    model = NETWORKS[settings.network](settings, classes)
    return use_fast_forms(model).to(memory_format=torch.channels_last)


def parameter_count(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
