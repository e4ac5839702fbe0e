"""torch.compile for training steps."""

import shutil
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cifarnet.core.errors import UserError
from cifarnet.networks.blocks import DepthwiseConv2d
from cifarnet.networks.cifarnet import CIFARNet
from cifarnet.networks.fast import use_plain_forms


def compiled(network: nn.Module, device: torch.device, parts: int = 1) -> nn.Module:
    """`network`, compiled by torch.compile; the weights are shared.

    On the CPU, `network` itself is switched to plain normalisations. On CUDA, CUDA graphs are used
    if `parts`, the number of parts of a step (--accumulate), is 1: otherwise the next part's graph
    would overwrite the gradients. Raises `UserError` without what torch.compile needs.
    """
    cuda = device.type == "cuda"
    compilers = ("gcc", "clang") if cuda else ("g++", "clang++", "c++")
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"--compile needs a compiler of {'C' if cuda else 'C++'}: install {compilers[0]} or "
            f"{compilers[1]}, or leave --compile out"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise UserError(
            "--compile needs the header files of Python: install python3-dev, or leave it out"
        )
    if cuda and torch.cuda.get_device_capability(device) < (7, 0):  # of Triton
        raise UserError("--compile needs a GPU of compute capability 7.0 or above; leave it out")
    if isinstance(network, CIFARNet):  # compiling fails if the sides vary, as with --image_sizes
        network.enlarged = torch.compiler.disable(network.enlarged)
        # This compiles the network in two parts. torch.compile then reads `.grad` of the tensors
        # between them, which warns.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    # Each size of --image_sizes is compiled by itself: the compiler fails on some of these networks
    # with sizes left open.
    torch._dynamo.config.recompile_limit = 64
    if cuda:
        mode = "reduce-overhead" if parts == 1 else "default"
        return torch.compile(network, mode=mode, dynamic=False)
    # The compiler fuses plain normalisations, and slows the folded ones (bench.py).
    use_plain_forms(network, keep=(DepthwiseConv2d,))
    return torch.compile(network, dynamic=False)


class CompiledForBatches(nn.Module):
    """Runs `network` compiled on batches of the first batch's size, and uncompiled on others. The
    last batch of an epoch is smaller. Compiling for it would take longer than it saves."""

    def __init__(self, network: nn.Module, device: torch.device, parts: int) -> None:
        super().__init__()
        self.network, self.batch_size = network, 0
        # in a tuple, so that torch does not register its weights a second time
        self.compiled = (compiled(network, device, parts),)

    def forward(self, images: Tensor) -> Tensor:
        self.batch_size = self.batch_size or len(images)
        whole = len(images) == self.batch_size
        return self.compiled[0](images) if whole else self.network(images)
