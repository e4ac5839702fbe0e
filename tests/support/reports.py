"""Reports on random predictions."""

from typing import Any

import torch
from torch import Tensor

from cifarnet.reporting.metrics import Report, build_report

ABOUT = {
    **{"dataset": "noise", "snapshot": "a.pth", "epoch": 3},
    **{"weights": "raw", "selected_by": "last epoch", "sha256": "0"},
}


def random_logits(classes: int, images: int) -> tuple[Tensor, Tensor]:
    """Logits float32 [N,C], half of them right, and labels int64 [N]."""
    logits = torch.randn(images, classes, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(images) % classes
    logits[torch.arange(images), labels] += 1.5
    return logits, labels


def make_report(names: Any, images: int = 60, **about: Any) -> Report:
    """A report for classes with these `names`; `about` are fields of it."""
    logits, labels = random_logits(len(names), images)
    return build_report(logits, labels, tuple(names), **{**ABOUT, "parameters": 1234, **about})
