"""Averaged weights: an exponential moving average of what is trained (`--ema_decay`)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cifarnet.core.device import Runtime


class MovingAverage(AveragedModel):
    """A copy of `network` whose weights follow it: decay * average + (1 - decay) * weights. torch's
    own update waits for a CUDA device in every step. Running statistics: see `update_bn`."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Moves the average towards the weights of `network`; the first time, all the way."""
        share = 1 - self.decay if self.n_averaged else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(network.parameters()), share)
        self.n_averaged += 1


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
        bn.train()
    seen = 0
    for images, _ in batches:
        seen += len(images)
        for bn in norms:
            bn.momentum = len(images) / seen  # the mean over all images: the last batch is smaller
        with runtime.autocast():
            network(images)
    for bn, momentum in zip(norms, momenta, strict=True):
        bn.momentum = momentum
        bn.eval()
