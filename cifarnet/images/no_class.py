"""Pictures that belong to no class: noise and single colours."""

import torch
import torch.nn.functional as F

from cifarnet.images.imageset import ImageSet

COUNT = 100  # pictures of each kind


def no_class_pictures(size: int) -> ImageSet:
    """The same pictures uint8 [400,3,size,size] each time; the classes are their kinds."""
    generator = torch.Generator().manual_seed(0)
    shape = COUNT, 3, size, size
    coarse = torch.randn(COUNT, 3, 4, 4, generator=generator)
    kinds = {  # in [0, 1]
        "uniform noise": torch.rand(shape, generator=generator),
        "Gaussian noise": 0.5 + 0.25 * torch.randn(shape, generator=generator),
        "smooth noise": 0.5 + 0.25 * F.interpolate(coarse, (size, size), mode="bicubic"),
        "one colour": torch.rand(COUNT, 3, 1, 1, generator=generator).expand(shape),
    }
    pixels = torch.cat(list(kinds.values())).clamp(0, 1).mul(255).round().to(torch.uint8)
    return ImageSet(pixels, torch.arange(len(kinds)).repeat_interleave(COUNT), tuple(kinds))
