"""When to believe a network: what a threshold of the predicted probability lets through."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cifarnet.reporting.predictions import Predictions

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MOST_POINTS = 200  # of a curve


def threshold_table(
    predictions: Predictions, no_class: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """For each of `THRESHOLDS`: the share of the images that reach it, and their accuracy.

    `no_class` holds the highest probability float64 [N] of each picture that belongs to no class,
    by kind of picture; the table has the share that reaches the threshold. An accuracy is None
    where no image reaches it.
    """
    hits = predictions.true == predictions.predicted
    table = []
    for threshold in THRESHOLDS:
        answered = predictions.p_predicted >= threshold
        row = {"threshold": threshold, "answered": float(answered.mean())}
        row["accuracy"] = float(hits[answered].mean()) if answered.any() else None
        row["no_class"] = {kind: float((p >= threshold).mean()) for kind, p in no_class.items()}
        table.append(row)
    return table


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
