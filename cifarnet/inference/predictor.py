"""A trained network at work: pictures in, ranked classes out."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cifarnet.core.errors import UserError
from cifarnet.images.imageset import SIZE
from cifarnet.images.normalise import Normalise
from cifarnet.images.pictures import read_images, to_pixels
from cifarnet.inference.classifier import Classifier

Ranking = list[tuple[str, float]]  # classes with their probabilities in [0, 1], the highest first
Outcome = tuple[str, Ranking | UserError]  # a path, and its ranking or why there is none


class PixelInput:
    """Turns pictures into the input of a `Classifier`: uint8 [B,3,H,W]. It rounds floats.

    Takes a PIL image of any size and mode and resizes it to `size` as in training (B is 1); or a
    tensor [3,H,W] or [B,3,H,W], uint8 or floats in [0,1], on any device, and keeps its size.
    Raises `UserError` for other tensors.
    """

    def __init__(self, size: int = SIZE) -> None:
        self.size = size

    def __call__(self, picture: Image.Image | Tensor) -> Tensor:
        pixels = self.pixels(picture)
        return pixels.round().to(torch.uint8) if pixels.is_floating_point() else pixels

    def pixels(self, picture: Image.Image | Tensor) -> Tensor:
        """The picture as [B,3,H,W], uint8 or floats in [0, 255]. Raises `UserError`."""
        if isinstance(picture, Tensor):
            pixels = picture
        else:
            pixels = torch.from_numpy(to_pixels(picture, self.size))
        is_float = pixels.is_floating_point()
        fits = pixels.ndim in (3, 4) and pixels.shape[-3] == 3
        if not fits or not (is_float or pixels.dtype is torch.uint8):
            shown = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
            raise UserError(
                f"a tensor {shown} is no picture; "
                f"give uint8, or floats in [0,1], of [3,H,W] or [B,3,H,W]"
            )
        if is_float and not ((pixels >= 0) & (pixels <= 1)).all():
            raise UserError(
                "a tensor of floats outside [0,1] is no picture; divide by 255, or give uint8"
            )
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        return pixels * 255 if is_float else pixels


class NetworkInput(PixelInput):
    """Turns pictures into the input of a network: float32 [B,3,H,W], normalised.

    Takes what `PixelInput` takes. `mean` and `std` of the three channels are in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: int = SIZE) -> None:
        super().__init__(size)
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, picture: Image.Image | Tensor) -> Tensor:
        pixels = self.pixels(picture)
        return Normalise(self.mean, self.std, pixels.device)(pixels)


class Predictor:
    """Ranks the classes of `classifier`, which is on `device`, for pictures."""

    def __init__(self, classifier: Classifier, device: torch.device) -> None:
        self.classifier, self.device = classifier, device

    @torch.inference_mode()
    def rank(self, pixels: Tensor) -> list[Ranking]:
        """Ranks all classes for each of the pictures uint8 [N,3,S,S].

        Equally probable classes stay in the classifier's order.
        """
        logits = self.classifier(pixels.to(self.device)).cpu()  # [N,C]
        shares, order = logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
        return [
            [(self.classifier.classes[label], share) for label, share in zip(*pair, strict=True)]
            for pair in zip(order.tolist(), shares.tolist(), strict=True)
        ]

    def classify(
        self, paths: Sequence[str], batch_size: int, on_read: Callable[[], object]
    ) -> Iterator[Outcome]:
        """Yields the outcome of each picture file, in order.

        Reads and ranks `batch_size` pictures at a time, and calls `on_read` after each is read.
        """
        for first in range(0, len(paths), batch_size):
            part, read = paths[first : first + batch_size], []
            with contextlib.closing(read_images(map(Path, part), self.classifier.size)) as reading:
                for found in reading:
                    read.append(found)
                    on_read()
            pixels = [found[0] for found in read if not isinstance(found, UserError)]
            ranked = iter(self.rank(torch.from_numpy(np.stack(pixels))) if pixels else ())
            for path, found in zip(part, read, strict=True):
                yield path, found if isinstance(found, UserError) else next(ranked)
