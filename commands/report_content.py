"""What report.html shows beside the figures: test images, augmented ones, activation maps."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cifarnet.checkpoints.trained import ModelInfo
from cifarnet.core.device import Runtime
from cifarnet.core.errors import UserError
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.images.no_class import no_class_pictures
from cifarnet.images.pictures import read_images
from cifarnet.inference.class_maps import caution, class_maps, why_no_maps
from cifarnet.inference.classifier import Classifier
from cifarnet.reporting.html import ReportData
from cifarnet.reporting.thumbnails import LARGEST
from cifarnet.settings import Settings
from data import augmented_examples


def report_data(
    infos: Sequence[ModelInfo], splits: Splits, settings: Settings, runtime: Runtime, **facts: Any
) -> ReportData:
    """What report.html shows beside the report on the models `infos`.

    `splits` hold the test images, `settings` name them. `facts` are fields of `ReportData` that the
    run knows. Training and device of several models are left out.
    """
    if len(infos) == 1:
        (info,) = infos
        of_training = info.settings
        same = splits.same_normalization(info.mean, info.std)
        if settings.evaluation.report and same and of_training.augmentation.augments:
            facts["augmented"] = partial(_augmented, splits, of_training, runtime)
        facts.setdefault("computed_on", info.origin.computed_on)
    if settings.evaluation.report:
        pictures = no_class_pictures(splits.test.images)
        each = len(pictures.images) // len(pictures.classes)
        facts["no_class"] = pictures.images[::each].numpy()
    has_files = settings.data.is_folder and settings.data.image_size < LARGEST
    return ReportData(
        images=splits.test.images.numpy(),
        official=settings.data.dataset == "cifar10",
        names=splits.test.names,
        larger=partial(_larger, splits.test, Path(settings.data.data_dir)) if has_files else None,
        **facts,
    )


def _larger(test: ImageSet, root: Path, at: np.ndarray) -> np.ndarray:
    """The images `at` of `test`, read again from their files below `root`, in the size of the
    report: uint8 [K,3,S,S]. Where a file cannot be read, its smaller image is enlarged."""
    images = F.interpolate(test.images[torch.from_numpy(at)], LARGEST).numpy()
    for i, outcome in enumerate(read_images((root / test.paths[j] for j in at), LARGEST)):
        if not isinstance(outcome, UserError):
            images[i], _ = outcome
    return images


def _augmented(splits: Splits, settings: Settings, runtime: Runtime) -> np.ndarray:
    """Training images, each followed by augmented versions: uint8 [R,V,3,S,S]."""
    examples = augmented_examples(splits, settings, runtime.device)
    return np.stack([examples.originals, *examples.versions], axis=1)


def report_maps(classifier: Classifier, splits: Splits, settings: Settings) -> dict[str, Any]:
    """The facts of `report_data` on the class activation maps of `classifier`."""
    reason = why_no_maps(classifier)
    if reason:
        return {"about_maps": reason}
    images, size = splits.test.images, settings.training.eval_batch_size
    device = next(classifier.parameters()).device

    def maps(chosen: np.ndarray, classes: np.ndarray) -> np.ndarray:
        parts = zip(
            torch.from_numpy(chosen).split(size),
            torch.from_numpy(classes).split(size),
            strict=True,
        )
        batches = [
            class_maps(classifier, images[part].to(device), labels.to(device)).cpu()
            for part, labels in parts
        ]
        return torch.cat(batches).numpy()

    return {"maps": maps, "about_maps": caution(classifier.infos[0])}
