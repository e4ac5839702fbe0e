"""The cost of a network in arithmetic and memory, measured on a copy of it."""

import contextlib
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def multiply_adds(model: nn.Module, size: int) -> int:
    """The multiply-adds of all convolutions and linear layers for an image of `size` pixels."""
    twin = copy.deepcopy(model).cpu().eval()
    with FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, 3, size, size))
    flops = dict(counter.get_flop_counts()["Global"])
    flops.pop(torch.ops.aten.bmm, None)  # `channel_means`: a sum, written as a matrix product
    return sum(flops.values()) // 2


def training_memory(
    model: nn.Module,
    size: int,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> int:
    """Estimates the bytes that a training step needs for each image of `size` pixels.

    The estimate is twice what the forward pass keeps for the backward pass, which makes gradients
    of similar size. On the CPU 1.8 to 2.7 times were measured, for CIFARNet of several sizes and
    `ResidualNet`. `model` stays on its device. Neither it nor the random state changes.
    """
    twin = copy.deepcopy(model).train()
    for layer in twin.modules():
        if isinstance(layer, nn.SyncBatchNorm):  # it would wait for the other ranks
            layer.__class__ = nn.BatchNorm2d
    images = 2
    device = next(twin.parameters()).device
    weights = {p.untyped_storage().data_ptr() for p in twin.parameters()}
    kept: dict[int, int] = {}  # bytes by address: one tensor may be kept for several uses

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    pixels = torch.zeros(images, 3, size, size, device=device)
    random_states = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with random_states, autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = twin(pixels)  # keeps the tensors alive, so that no address is used twice
    del logits
    return 2 * sum(kept.values()) // images
