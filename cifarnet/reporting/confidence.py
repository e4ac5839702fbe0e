"""When to believe a network: what a threshold of the predicted probability lets through."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cifarnet.reporting.predictions import Predictions, interval

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
EXAMPLE = 0.8  # the one of them that the sentences of the report use
MOST_POINTS = 200  # of a curve


def threshold_table(
    predictions: Predictions, no_class: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """For each of `THRESHOLDS`: the share of the images that reach it, and their accuracy with its
    95 % interval.

    `no_class` holds the highest probability float64 [N] of each picture that belongs to no class,
    by kind of picture; the table has the share that reaches the threshold. Accuracy and interval
    are None where no image reaches it.
    """
    hits = predictions.true == predictions.predicted
    table = []
    for threshold in THRESHOLDS:
        answered = predictions.p_predicted >= threshold
        row = {"threshold": threshold, "answered": float(answered.mean())}
        row["accuracy"] = float(hits[answered].mean()) if answered.any() else None
        row["interval"] = interval(row["accuracy"], answered.sum()) if answered.any() else None
        row["no_class"] = {kind: float((p >= threshold).mean()) for kind, p in no_class.items()}
        table.append(row)
    return table


class Answers(NamedTuple):
    """The answers that name one class, by its index: how many, and the share that is correct."""

    label: int
    images: int
    accuracy: float
    interval: tuple[float, float]  # 95 %, of the accuracy


def answers_by_class(predictions: Predictions, threshold: float) -> list[Answers]:
    """The answers that reach `threshold`, by predicted class, the least accurate class first.
    Classes that are never the answer are left out."""
    answered = predictions.p_predicted >= threshold
    hits = predictions.true == predictions.predicted
    rows = []
    for label in np.unique(predictions.predicted[answered]).tolist():
        of_class = hits[answered & (predictions.predicted == label)]
        share = float(of_class.mean())
        rows.append(Answers(label, len(of_class), share, interval(share, len(of_class))))
    return sorted(rows, key=lambda row: row.accuracy)


def coverage_curve(predictions: Predictions) -> list[tuple[float, float]]:
    """Points (share of the images that are answered, accuracy on them), the surest images first.

    Images of equal probability are answered together. El-Yaniv and Wiener, On the Foundations of
    Noise-free Selective Classification, 2010.
    """
    order = np.argsort(-predictions.p_predicted, kind="stable")
    p, hits = predictions.p_predicted[order], (predictions.true == predictions.predicted)[order]
    counts = np.arange(1, len(p) + 1)
    accuracy = np.cumsum(hits) / counts
    ends = np.flatnonzero(np.append(p[1:] != p[:-1], True))
    ends = ends[:: -max(1, len(ends) // MOST_POINTS)][::-1]  # the last one is among them
    return list(zip((counts[ends] / len(p)).tolist(), accuracy[ends].tolist(), strict=True))
