"""The usual training loop, which bench.py compares main.py with: no step of it is made faster."""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

from cifarnet.core.late import LateModule
from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD
from cifarnet.images.imageset import ImageSet
from cifarnet.inference.readback import random_images
from cifarnet.networks.cifarnet import CIFARNet
from cifarnet.settings import Settings
from cifarnet.settings.augmentation import AugmentationSettings

A, cv2 = LateModule("albumentations"), LateModule("cv2")

BATCH = 512  # images


def plain_loop(device: str, steps: int) -> float:
    """Images of the usual loop: NCHW, float32, torch's defaults."""
    model = CIFARNet(dropout=Settings().network.dropouts).to(device)
    optimizer = optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    images = _PlainImages(noise(BATCH * (steps + 1)))
    times = []
    started = time.perf_counter()
    for batch, labels in DataLoader(images, BATCH, shuffle=True, num_workers=2):
        loss = F.cross_entropy(model(batch.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
    return BATCH / statistics.median(times[1:])


def noise(count: int, size: int = 32) -> ImageSet:
    """Random images, with ten classes in turn."""
    return ImageSet(random_images(count, size), torch.arange(count) % 10, tuple("0123456789"))


class _PlainImages:
    """The usual data set: one image at a time, normalised on the CPU."""

    def __init__(self, images: ImageSet) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels
        border = {"border_mode": cv2.BORDER_CONSTANT, "fill": (125, 123, 114)}
        affine = {"translate_percent": (-0.0625, 0.0625), "scale": (0.9, 1.1), "rotate": (-15, 15)}
        side, p = (16, 16), AugmentationSettings().probabilities
        hole = {"num_holes_range": (1, 1), "hole_height_range": side, "hole_width_range": side}
        self.transform = A.Compose(
            [
                A.PadIfNeeded(40, 40, **border),
                A.RandomCrop(32, 32),
                A.HorizontalFlip(p=0.5),
                A.Affine(**affine, p=p["affine_p"]),
                A.ColorJitter(0.2, 0.2, 0.2, 0.02, p=p["jitter_p"]),
                A.CoarseDropout(**hole, p=p["hole_p"]),
                A.Normalize(CIFAR10_MEAN, CIFAR10_STD),
                A.ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(image=self.pixels[i])["image"], self.labels[i]
