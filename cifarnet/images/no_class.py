"""Pictures that belong to no class: noise, patterns, and test images made unrecognisable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnet.images.imageset import ImageSet

MOST = 100  # pictures of each kind
PARTS = 4  # patches along each side of a picture of mixed patches


def no_class_pictures(images: Tensor) -> ImageSet:
    """Pictures uint8 of each kind, the same ones each time; the classes are the kinds.

    There are as many of each kind as test images `images`, uint8 [N,3,S,S], but at most `MOST`. The
    last two kinds are made from these.
    """
    generator = torch.Generator().manual_seed(0)
    count, size = min(MOST, len(images)), images.shape[-1]
    shape = count, 3, size, size
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    kinds = {  # in [0, 1]
        "uniform noise": torch.rand(shape, generator=generator),
        "Gaussian noise": 0.5 + 0.25 * torch.randn(shape, generator=generator),
        "smooth noise": 0.5 + 0.25 * F.interpolate(coarse, (size, size), mode="bicubic"),
        "one colour": torch.rand(count, 3, 1, 1, generator=generator).expand(shape),
        "stripes and checks": _stripes(count, size, generator),
        "mixed patches": _mixed_patches(_some(images, count, generator), generator),
        "scrambled images": _scrambled(_some(images, count, generator), generator),
    }
    pixels = torch.cat(list(kinds.values())).clamp(0, 1).mul(255).round().to(torch.uint8)
    return ImageSet(pixels, torch.arange(len(kinds)).repeat_interleave(count), tuple(kinds))


def _some(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random `images`, float32 in [0, 1]."""
    return images[torch.randint(len(images), (count,), generator=generator)] / 255


def _stripes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Two colours in stripes of any direction; in half of the pictures in checks."""
    angle, period, chance = torch.rand(3, count, 1, 1, generator=generator)
    place = torch.arange(size) / size
    y, x = place[:, None], place[None, :]
    frequency = 2 * torch.pi * (2 + 6 * period)
    cos, sin = torch.cos(torch.pi * angle), torch.sin(torch.pi * angle)
    along = torch.sin(frequency * (cos * x + sin * y))
    across = torch.sin(frequency * (cos * y - sin * x)).where(chance < 0.5, torch.ones(()))
    colors = torch.rand(2, count, 3, 1, 1, generator=generator)
    return torch.where((along * across > 0)[:, None], *colors)


def _mixed_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """The patches of all `images`, `PARTS` by `PARTS` of each, in random order."""
    count, channels, size, _ = images.shape
    side = size // PARTS
    patches = F.unfold(images, side, stride=side).mT.reshape(-1, channels * side * side)
    patches = patches[torch.randperm(len(patches), generator=generator)]
    return F.fold(patches.view(count, PARTS**2, -1).mT, (size, size), side, stride=side)


def _scrambled(images: Tensor, generator: torch.Generator) -> Tensor:
    """`images` with random phases: colours and textures remain, but no shapes."""
    noise = torch.rand(images.shape[0], 1, *images.shape[2:], generator=generator)
    turned = torch.polar(torch.ones(()), torch.fft.fft2(noise).angle())
    return torch.fft.ifft2(torch.fft.fft2(images) * turned).real
