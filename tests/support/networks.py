"""CIFARNet, written a second time, to compare with."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor


def reference_forward(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Logits [B,classes] of images [B,3,H,W]: the published table in plain functional calls."""

    def bn(x: Tensor, name: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in names))

    def separable(x: Tensor, name: str, channels: int, **settings: int) -> Tensor:
        x = F.conv2d(x, state[f"{name}.conv.0.weight"], groups=channels, **settings)
        return bn(F.conv2d(x, state[f"{name}.conv.1.weight"]), f"{name}.bn")

    def shortcut(x: Tensor, name: str) -> Tensor:
        return bn(F.conv2d(x, state[f"{name}.shortcut.0.weight"]), f"{name}.shortcut.1")

    x = F.relu(bn(F.conv2d(x, state["c1.conv.weight"], padding=1), "c1.bn"))
    x = F.relu(separable(x, "c2", 40, padding=1) + shortcut(x, "c2"))
    x = F.relu(separable(x, "c3", 128, padding=4, dilation=4) + shortcut(x, "c3"))
    x = F.relu(separable(x, "c4", 240, padding=1, stride=2))
    return F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])
