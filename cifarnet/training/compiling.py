"""torch.compile for training steps."""

import shutil

import torch
from torch import Tensor, nn

from cifarnet.core.errors import UserError
from cifarnet.networks.blocks import DepthwiseConv2d
from cifarnet.networks.fast import use_plain_forms


def compiled(network: nn.Module, device: torch.device, parts: int = 1) -> nn.Module:
    """`network`, compiled by torch.compile; the weights are shared.

    On CUDA with CUDA graphs, unless a step has several `parts`: the gradients of a part lie in
    memory that the next part's graph overwrites. Raises `UserError` without the compiler of C or
    C++ that torch.compile needs.
    """
    cuda = device.type == "cuda"
    compilers = ("gcc", "clang") if cuda else ("g++", "c++", "clang++")
    if not any(map(shutil.which, compilers)):
        raise UserError(f"--compile needs one of {', '.join(compilers)}; leave it off")
    # Each size of --image_sizes is compiled by itself: the compiler fails on some of these networks
    # with sizes left open.
    torch._dynamo.config.recompile_limit = 64
    if cuda:
        mode = "reduce-overhead" if parts == 1 else "default"
        return torch.compile(network, mode=mode, dynamic=False)
    # The compiler fuses plain normalisations, and slows the folded ones (bench.py).
    plain = use_plain_forms(network, keep=(DepthwiseConv2d,))
    return torch.compile(plain, dynamic=False)


class CompiledForBatches(nn.Module):
    """`network`, compiled for batches of as many images as the first one has.

    Others, such as the last batch of an epoch, run as they are: compiling for their size would take
    longer than it saves.
    """

    def __init__(self, network: nn.Module, device: torch.device, parts: int) -> None:
        super().__init__()
        self.network, self.size = network, 0
        self.forms = (compiled(network, device, parts),)  # a tuple: its weights are registered once

    def forward(self, images: Tensor) -> Tensor:
        self.size = self.size or len(images)
        form = self.forms[0] if len(images) == self.size else self.network
        return form(images)
