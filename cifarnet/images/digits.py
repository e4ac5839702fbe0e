"""scikit-learn's handwritten digits: real images that need no download."""

import torch
import torch.nn.functional as F

from cifarnet.images.imageset import SIZE, ImageSet, hold_back

WHITE = 16  # the largest value of a pixel in scikit-learn's images
TEST_FRACTION = 0.2


def read_digits(size: int = SIZE) -> tuple[ImageSet, ImageSet]:
    """Reads the 1,797 digits, enlarged from 8x8 grey to RGB of `size`, as (train, test)."""
    from sklearn.datasets import load_digits  # here: slow to import, and only used here

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float().mul_(255 / WHITE)[:, None]  # [N,1,8,8]
    grey = F.interpolate(grey, (size, size), mode="bilinear").round().to(torch.uint8)
    images = grey.expand(-1, 3, -1, -1).contiguous()
    classes = tuple(str(digit) for digit in range(10))
    return hold_back(
        ImageSet(images, torch.from_numpy(bunch.target).long(), classes), TEST_FRACTION
    )
