"""Averaged weights."""

from collections.abc import Iterable

import torch
from torch import nn

from cifarnet.core.device import Runtime
from cifarnet.images.normalise import Batch


@torch.no_grad()
def update_bn(model: nn.Module, batches: Iterable[Batch], runtime: Runtime) -> None:
    """Gives the normalisations of `model` the statistics of `batches` as running ones.

    Averaged weights need it: the statistics of weights that moved are not those of their average. Unlike torch's own
    (`torch.optim.swa_utils.update_bn`) without dropout and in the precision of the run.
    """
    model.eval()
    norms = [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [bn.momentum for bn in norms]
    for bn in norms:
        bn.reset_running_stats()
        bn.momentum = None  # the mean of all batches
        bn.train()
    for images, _ in batches:
        with runtime.autocast():
            model(images)
    for bn, momentum in zip(norms, momenta, strict=True):
        bn.momentum = momentum
        bn.eval()
