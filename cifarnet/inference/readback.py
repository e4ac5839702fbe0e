"""Compares an exported file with the network."""

from collections.abc import Callable

import torch
from torch import Tensor

from cifarnet.images.imageset import SIZE

Classify = Callable[[Tensor], Tensor]  # uint8 [N,3,S,S] -> logits float32 [N,classes]

RANDOM_IMAGES = 100  # if no test images are available
BATCH = 256  # images of 32 pixels; the last batch is usually smaller, so two sizes are tried


@torch.inference_mode()
def compute_logits(classify: Classify, pixels: Tensor) -> Tensor:
    """The logits float32 [N,classes] for `pixels` uint8 [N,3,S,S]."""
    batch = BATCH * SIZE**2 // pixels.shape[-1] ** 2  # fewer large images: the same memory
    return torch.cat([classify(part) for part in pixels.split(batch)])


def compare(expected: Tensor, logits: Tensor) -> tuple[float, float]:
    """The largest difference of logits [N,classes] for the same images, and the share of images
    with equal top-1, in [0, 1]. What is not finite differs by infinity."""
    difference = (logits.double() - expected.double()).abs().max().nan_to_num(torch.inf).item()
    return difference, top1(logits, expected.argmax(1))


def top1(logits: Tensor, labels: Tensor) -> float:
    """The share of logits [N,classes] whose highest one is that of the label, int64 [N]."""
    return (logits.argmax(1) == labels).double().mean().item()


def random_images(count: int, size: int) -> Tensor:
    """The same random pixels each time: uint8 [count,3,size,size]."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
