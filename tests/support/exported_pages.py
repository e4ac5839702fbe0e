"""Pages that classify, of networks with random weights."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cifarnet.export.page import write_page
from cifarnet.images.normalise import Normalise
from support.random_models import CLASSES, MEAN, STD, random_model
from support.snapshots import make_trained

TOLERANCE = 1e-3  # of logits
KINDS = ("cifarnet 32", "cifarnet 64", "lite 32", "residual 32", "weighed")


class Weighed(nn.Module):
    """Weighs channels by what they hold, as squeeze-and-excitation does (arXiv 1709.01507)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2, padding=1, dilation=2, groups=1)
        self.narrow, self.wide, self.head = nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x)
        weight = torch.sigmoid(self.wide(F.relu(self.narrow(x.mean((2, 3))))))
        return self.head((weight[:, :, None, None] * x).amax((2, 3)))


def build(kind: str) -> tuple[nn.Module, int]:
    """A network with random weights and statistics, and the size of its images."""
    if kind == "weighed":
        torch.manual_seed(0)
        return Weighed().eval(), 13
    network, size = kind.split()
    flags = {
        "grown": {"attention": "se", "depth": 2.0},
        "attended": {"network": "lite", "attention": "se", "width": 0.5},
    }.get(network, {"network": network})
    return random_model(**flags).build(), int(size)


def write(network: nn.Module, folder: Path, size: int = 32, rows=(), cautions=(), **about) -> Path:
    path, usual = folder / "page.html", {"classes": CLASSES, "mean": MEAN, "std": STD}
    model = make_trained(**(usual | {"image_size": size} | about))
    write_page(network, model, path, rows, cautions)
    return path


def answers(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The logits of `network` for uint8 [N,3,S,S]."""
    return network(Normalise(MEAN, STD, torch.device("cpu"))(pixels))
