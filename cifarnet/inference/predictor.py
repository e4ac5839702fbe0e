"""Classifies picture files: paths in, ranked classes out."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cifarnet.core.errors import UserError
from cifarnet.images.pictures import read_images
from cifarnet.inference.classifier import Classifier

Ranking = list[tuple[str, float]]  # classes with their probabilities in [0, 1], the highest first
Outcome = tuple[str, Ranking | UserError]  # a path, and its ranking or why there is none


class Predictor:
    """Ranks the classes of `classifier`, which is on `device`, for pictures."""

    def __init__(self, classifier: Classifier, device: torch.device) -> None:
        self.classifier, self.device = classifier, device

    @torch.inference_mode()
    def rank(self, pixels: Tensor) -> list[Ranking]:
        """Ranks all classes for each of the pictures uint8 [N,3,S,S]. Equally probable classes stay
        in the classifier's order."""
        logits = self.classifier.logits(pixels.to(self.device)).cpu()  # [N,C]
        shares, order = logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
        return [
            [(self.classifier.classes[label], share) for label, share in zip(*pair, strict=True)]
            for pair in zip(order.tolist(), shares.tolist(), strict=True)
        ]

    def classify(
        self, paths: Sequence[str], batch_size: int, on_read: Callable[[], object]
    ) -> Iterator[Outcome]:
        """Yields the outcome of each picture file, in order. Reads and ranks `batch_size` pictures
        at a time, and calls `on_read` after each is read."""
        for first in range(0, len(paths), batch_size):
            part, read = paths[first : first + batch_size], []
            size = self.classifier.image_size
            with contextlib.closing(read_images(map(Path, part), size)) as reading:
                for picture in reading:
                    read.append(picture)
                    on_read()
            pixels = [picture[0] for picture in read if not isinstance(picture, UserError)]
            ranked = iter(self.rank(torch.from_numpy(np.stack(pixels))) if pixels else ())
            for path, picture in zip(part, read, strict=True):
                yield path, picture if isinstance(picture, UserError) else next(ranked)
