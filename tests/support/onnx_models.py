"""A trained model with random weights, to be written as an ONNX file."""

import torch
from torch import nn

from cifarnet.checkpoints.trained import Origin, TrainedModel, fingerprint
from cifarnet.networks.build import build_model
from cifarnet.settings import Settings

CLASSES = ("bar", "disc", "star")


def random_model(size: int = 32, **flags: object) -> TrainedModel:
    """A model as training leaves one: no running statistic or factor is 0 or 1."""
    settings = Settings.from_flags(**flags)
    torch.manual_seed(0)
    network = build_model(settings.network, len(CLASSES)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 2.0), (module.bias.data, -0.5, 0.5),
            ):  # fmt: skip
                values.uniform_(low, high)
    weights = network.state_dict()
    return TrainedModel(
        network=settings.network,
        image_size=size,
        classes=CLASSES,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
        origin=Origin("ü", 7, "raw", "last epoch", 0.5, "the history", "cpu", dict(flags)),
        sha256=fingerprint(weights),
        source="there/last.pth",
        weights=weights,
    )


def noise(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Random pixels uint8 [N,3,S,S]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
