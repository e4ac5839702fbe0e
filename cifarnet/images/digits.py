"""scikit-learn's handwritten digits."""

import torch
from sklearn.datasets import load_digits

from cifarnet.images.imageset import SIZE, ImageSet, hold_back


def _read_digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1,797 handwritten digits, 8x8 with values 0 to 16, as 32x32 RGB; a fifth is for testing."""
    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float().mul_(255 / 16)[:, None]  # [N,1,8,8]
    grey = (
        torch.nn.functional.interpolate(grey, (SIZE, SIZE), mode="bilinear").round().to(torch.uint8)
    )
    images = grey.expand(-1, 3, -1, -1).contiguous()
    digits = ImageSet(
        images, torch.from_numpy(bunch.target).long(), tuple(str(d) for d in range(10))
    )
    train, test = hold_back(digits, 0.2)
    return train, test
