"""Labels worth a second look: confident learning on out-of-sample predictions."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifarnet.core.files import write_text
from cifarnet.reporting.predictions import Predictions


class LabelIssues(NamedTuple):
    """The images whose label the network doubts, the most doubtful first: int64 [K] each."""

    images: np.ndarray
    suggested: np.ndarray  # their classes, as the network sees them


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
    predictions: Predictions, classes: Sequence[str], paths: Sequence[str] | None, path: Path
) -> None:
    """Writes a row per doubtful label as CSV. `paths` name the images; None: they are numbered from
    0. Raises `OSError`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "label", "suggested", "probability_label", "probability_suggested"))
    p, true = predictions.probabilities, predictions.true
    for image, suggested in zip(*label_issues(predictions), strict=True):
        name = image if paths is None else paths[image]
        both = p[image, true[image]], p[image, suggested]
        writer.writerow(
            (name, classes[true[image]], classes[suggested], *(f"{q:.6g}" for q in both))
        )
    write_text(path, text.getvalue())
