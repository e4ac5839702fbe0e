"""scikit-learn's handwritten digits: real images that need no download."""

import dataclasses

import torch
import torch.nn.functional as F

from cifarnet.core.late import LateModule
from cifarnet.images.finding import Say
from cifarnet.images.imageset import Dataset, ImageSet, split_holdout
from cifarnet.settings.data import DataSettings

sklearn_datasets = LateModule("sklearn.datasets")

WHITE = 16  # the largest value of a pixel in scikit-learn's images
TEST_FRACTION = 0.2


def read_digits(settings: DataSettings, say: Say, classes: tuple[str, ...] = ()) -> Dataset:
    """Reads the 1,797 digits, enlarged from 8x8 grey to RGB of --image_size."""
    bunch = sklearn_datasets.load_digits()
    grey = torch.from_numpy(bunch.images).float().mul_(255 / WHITE)[:, None]  # [N,1,8,8]
    grey = F.interpolate(grey, (settings.image_size,) * 2, mode="bilinear").round().to(torch.uint8)
    images = grey.expand(-1, 3, -1, -1).contiguous()
    digits = ImageSet(images, torch.from_numpy(bunch.target).long(), tuple("0123456789"))
    parts = split_holdout(digits, TEST_FRACTION)
    train, test = (dataclasses.replace(part, paths=None) for part in parts)  # each from number 0
    return Dataset("digits", train, None, test)
