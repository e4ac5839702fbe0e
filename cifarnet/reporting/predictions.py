"""Predictions for each image, and their calibration."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from torch import Tensor

BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, 2017


class Predictions(NamedTuple):
    """One value per image, in the order of the test set: classes int64 [N], and probabilities
    float64 [N] in [0, 1]."""

    true: np.ndarray
    predicted: np.ndarray
    runner_up: np.ndarray  # the class of the second highest probability
    p_true: np.ndarray
    p_predicted: np.ndarray
    p_runner_up: np.ndarray
    probabilities: np.ndarray  # of all classes, float64 [N,C]


def ranked(logits: Tensor) -> Tensor:
    """The classes int64 [N,C] by falling logit; of equal logits the first class comes first."""
    return logits.sort(dim=1, descending=True, stable=True).indices


def build_predictions(logits: Tensor, labels: Tensor) -> Predictions:
    """The predictions of logits [N,C] for labels [N], C > 1."""
    probabilities = logits.double().softmax(dim=1)
    classes = labels, *ranked(logits)[:, :2].unbind(1)
    each = (probabilities.gather(1, chosen[:, None])[:, 0] for chosen in classes)
    return Predictions(*(values.numpy() for values in (*classes, *each, probabilities)))


def interval(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share in [0, 1] that was measured on `images` (Wilson 1927)."""
    return tuple(binomtest(round(share * images), images).proportion_ci(0.95, "wilson"))


class Bin(NamedTuple):
    """The images whose predicted probability is in (low, high], or 0 in the first bin; means are 0
    where there are none."""

    low: float
    high: float
    images: int
    confidence: float  # the mean of the predicted probabilities
    accuracy: float


def reliability(predictions: Predictions) -> list[Bin]:
    """The images, sorted by the predicted probability into `BINS` bins of equal width."""
    p, hits = predictions.p_predicted, predictions.true == predictions.predicted
    edges = np.arange(BINS + 1) / BINS
    at = np.searchsorted(edges[1:-1], p, side="left")
    counts, *sums = (np.bincount(at, weights, BINS) for weights in (None, p, hits))
    columns = (edges[:-1], edges[1:], counts, *(each / np.maximum(counts, 1) for each in sums))
    return [Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error in [0, 1]: the mean gap between probability and accuracy
    (Guo et al. 2017)."""
    images = sum(each.images for each in bins)
    return sum(each.images * abs(each.confidence - each.accuracy) for each in bins) / images
