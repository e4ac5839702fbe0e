"""Images whose labels and pixels tell which ones they are, and batches of them."""

import torch

from cifarnet.core.device import init_process
from cifarnet.images.imageset import ImageSet
from cifarnet.settings import Settings
from data import TrainBatches

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def numbered_images(count: int) -> ImageSet:
    """Image i holds the value i, and so does its label."""
    values = torch.arange(count)
    pixels = values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    return ImageSet(pixels, values, ("a", "b"))


def batches_of(images: ImageSet, **flags: object) -> TrainBatches:
    """Batches of 16 augmented images, on the CPU and without workers unless `flags` say so."""
    settings = Settings.from_flags(device="cpu", **{"num_workers": 0, "batch_size": 16, **flags})
    runtime = init_process(settings.precision, settings.training.seed)
    return TrainBatches(images, settings, runtime, MEAN, STD)
