"""Predictions for each image, their calibration, and the interval of an accuracy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, 2017
Z = 1.959963984540054  # of the normal distribution: 95 % lie within this many deviations


class Predictions(NamedTuple):
    """One value per image, in the order of the test set: classes int64 [N], probabilities [N].

    Probabilities are float64 in [0, 1].
    """

    true: np.ndarray
    predicted: np.ndarray
    runner_up: np.ndarray  # the class of the second highest probability
    p_true: np.ndarray
    p_predicted: np.ndarray
    p_runner_up: np.ndarray


def build_predictions(logits: Tensor, labels: Tensor, ranked: Tensor) -> Predictions:
    """The predictions of logits [N,C] for labels [N]; `ranked` [N,C] are the classes, best first.

    There are two classes or more.
    """
    probabilities = logits.double().softmax(dim=1)
    classes = labels, ranked[:, 0], ranked[:, 1]
    each = (probabilities.gather(1, chosen[:, None])[:, 0] for chosen in classes)
    return Predictions(*(values.numpy() for values in (*classes, *each)))


class Bin(NamedTuple):
    """The images whose predicted probability is in (low, high]; means are 0 where there are none.

    The first bin holds the probability 0 too.
    """

    low: float
    high: float
    images: int
    confidence: float  # the mean of the predicted probabilities
    accuracy: float


def reliability(predictions: Predictions, bins: int = BINS) -> list[Bin]:
    """The images, sorted by the predicted probability into `bins` of equal width."""
    edges = np.arange(bins + 1) / bins
    p = predictions.p_predicted
    at = np.searchsorted(edges[1:-1], p, side="left")
    hits = (predictions.true == predictions.predicted).astype(float)
    counts, confidences, right = (
        np.bincount(at, weights, bins) for weights in (None, p, hits)
    )  # 3 of [bins]
    least = np.maximum(counts, 1)
    columns = (edges[:-1], edges[1:], counts, confidences / least, right / least)
    return [Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error in [0, 1]: the mean gap between probability and accuracy.

    Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    images = sum(each.images for each in bins)
    return sum(each.images * abs(each.confidence - each.accuracy) for each in bins) / images


def wilson(hits: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a share that was measured as `hits` of `images` > 0, in [0, 1].

    Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    share = hits / images
    centre = share + Z**2 / (2 * images)
    reach = Z * math.sqrt(share * (1 - share) / images + (Z / (2 * images)) ** 2)
    low, high = ((centre + side * reach) / (1 + Z**2 / images) for side in (-1, 1))
    # Exact 0 and 1, in spite of rounding.
    return (0.0 if hits == 0 else low), (1.0 if hits == images else high)
