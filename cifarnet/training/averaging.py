"""Averaged weights: an exponential moving average of what is trained (`--ema_decay`)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifarnet.core.device import Runtime


def averaged_copy(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of `network` whose weights follow it: decay * average + (1 - decay) * weights."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))


@torch.no_grad()
def update_bn(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], runtime: Runtime
) -> None:
    """Sets the running statistics of all batch normalisations to those of `batches`.

    Averaged weights need it: the running statistics belong to the weights that moved. Unlike
    `torch.optim.swa_utils.update_bn`, it leaves dropout out and computes in the run's precision.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [bn.momentum for bn in norms]
    for bn in norms:
        bn.reset_running_stats()
        bn.momentum = None  # the mean over all batches
        bn.train()
    for images, _ in batches:
        with runtime.autocast():
            network(images)
    for bn, momentum in zip(norms, momenta, strict=True):
        bn.momentum = momentum
        bn.eval()
