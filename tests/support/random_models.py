"""Trained models with random weights, and random pixels for them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cifarnet.checkpoints.trained import TrainedModel
from cifarnet.networks.build import build_model
from cifarnet.settings import Settings
from support.snapshots import make_trained

CLASSES = ("bar", "disc", "star")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def random_model(size: int = 32, classes: Sequence[str] = CLASSES, **flags: object) -> TrainedModel:
    """A model as training leaves one: no running statistic or factor is 0 or 1.

    `flags` are those of its run.
    """
    settings = Settings.from_flags(**flags)
    torch.manual_seed(0)
    network = build_model(settings.network, len(classes))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 2.0), (module.bias.data, -0.5, 0.5),
            ):  # fmt: skip
                values.uniform_(low, high)
    about = {"image_size": size, "classes": tuple(classes), "mean": MEAN, "std": STD}
    return make_trained(network.state_dict(), flags, network=settings.network, **about)


def noise(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Random pixels uint8 [N,3,S,S]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
