"""Labels that may be wrong: confident learning on out-of-sample predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifarnet.core.files import write_text
from cifarnet.core.text import csv_text
from cifarnet.reporting.predictions import Predictions


class LabelIssues(NamedTuple):
    """The images whose label the network doubts, the most doubtful first: int64 [K] each."""

    images: np.ndarray
    suggested: np.ndarray  # their classes, as the network sees them


class ValidationImages(NamedTuple):
    """Training images that were held out, and what the network predicts for them."""

    images: np.ndarray  # uint8 [N,3,S,S]
    names: np.ndarray  # [N]: see `ImageSet`
    predictions: Predictions


def label_issues(predictions: Predictions) -> LabelIssues:
    """The images off the diagonal of the confident joint (Northcutt et al. 2021, arXiv 1911.00068).

    A class is confident for an image if its probability is at least the mean probability of that
    class over the images with that label. A label is doubtful if the most probable confident class
    is another one. The network must not have learnt from these images.
    """
    p, true = predictions.probabilities, predictions.true
    sizes = np.bincount(true, minlength=p.shape[1])
    sums = np.bincount(true, p[np.arange(len(true)), true], p.shape[1])
    thresholds = np.where(sizes, sums / np.maximum(sizes, 1), np.inf)
    confident = np.where(p >= thresholds, p, 0)
    suggested = confident.argmax(axis=1)
    doubtful = np.flatnonzero(confident.any(axis=1) & (suggested != true))
    images = doubtful[np.argsort(p[doubtful, true[doubtful]], kind="stable")]
    return LabelIssues(images, suggested[images])


def write_label_issues(
    predictions: Predictions,
    classes: Sequence[str],
    names: Sequence[str | int],
    path: Path,
    validation: ValidationImages | None = None,
) -> None:
    """Writes a row per doubtful label as CSV: first of the test images, then of `validation`.
    `names` are those of the test images. Raises `OSError`."""
    parts = [("test", names, predictions)]
    if validation:
        parts.append(("validation", validation.names, validation.predictions))
    columns = ("label", "suggested", "probability_label", "probability_suggested")
    rows = [("part", "image", *columns)]
    for part, of_images, of_part in parts:
        for image, suggested in zip(*label_issues(of_part), strict=True):
            both = of_part.true[image], suggested
            shares = (f"{of_part.probabilities[image, label]:.6g}" for label in both)
            rows.append((part, of_images[image], *(classes[label] for label in both), *shares))
    write_text(path, csv_text(rows))
