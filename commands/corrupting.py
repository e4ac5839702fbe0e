"""Measures a classifier on corrupted test images: evaluate.py --corruptions."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cifarnet.core.device import Runtime
from cifarnet.images.corruptions import CORRUPTIONS, corrupt
from cifarnet.images.imageset import ImageSet
from cifarnet.inference.classifier import Classifier
from cifarnet.reporting.corruptions import CorruptionRow
from cifarnet.reporting.metrics import collect_logits, scores
from cifarnet.settings import Settings


def measure_corruptions(
    classifier: Classifier, images: ImageSet, clean: float, settings: Settings, runtime: Runtime
) -> list[CorruptionRow]:
    """The accuracies on `images` after each corruption. The first row is `clean`, the accuracy on
    `images` as they are.

    One batch of corrupted images is in memory at a time. The seed of `settings` determines the
    draws. Prints a line for each corruption: a log shows no bar.
    """
    classifier = classifier.to(runtime.device)
    rows = [CorruptionRow("none", 0, clean, len(images))]
    size = settings.training.eval_batch_size
    total = len(images) * sum(len(entry.constants) for entry in CORRUPTIONS.values())
    bar = tqdm(total=total, desc="corruptions", unit="image", leave=False, disable=None)

    def batches(name: str, severity: int) -> Iterator[tuple[Tensor, Tensor]]:
        for positions in torch.arange(len(images)).split(size):
            pixels = [
                corrupt(images.images[i].numpy(), name, severity, settings.training.seed, i)
                for i in positions.tolist()
            ]
            labels = images.labels[positions].to(runtime.device)
            yield torch.from_numpy(np.stack(pixels)).to(runtime.device), labels
            bar.update(len(pixels))

    with bar:
        for name, entry in CORRUPTIONS.items():
            for severity in entry.constants:
                logits, labels = collect_logits(classifier.logits, batches(name, severity), runtime)
                rows.append(CorruptionRow(name, severity, scores(logits, labels).top1, len(images)))
            shares = (f"{row.accuracy:.2%}" for row in rows[-len(entry.constants) :])
            tqdm.write(f"{name}: {', '.join(shares)}", nolock=True)  # above the bar
    return rows
