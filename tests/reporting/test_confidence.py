import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from support.reports import ABOUT, random_logits

from cifarnet.reporting.confidence import (
    THRESHOLDS,
    answers_by_class,
    coverage_curve,
    threshold_table,
)
from cifarnet.reporting.metrics import build_report
from cifarnet.reporting.predictions import Predictions, interval


def predictions(p: list[float], hits: list[int]) -> Predictions:
    zeros, p = np.zeros(len(p), int), np.array(p)
    return Predictions(zeros, 1 - np.array(hits), zeros, p, p, p, p[:, None])


def test_a_threshold_answers_the_images_that_reach_it():
    logits, labels = random_logits(10, 400)
    report = build_report(
        3 * logits, labels, tuple("abcdefghij"), {"noise": np.array([0.5, 0.85])}, **ABOUT
    )
    shares, predicted = (3 * logits.double()).softmax(1).max(1)
    assert [row["threshold"] for row in report.thresholds] == list(THRESHOLDS)
    for row in report.thresholds:
        answered = shares >= row["threshold"]
        assert row["answered"] == pytest.approx(answered.double().mean().item())
        expected = accuracy_score(labels[answered], predicted[answered])
        assert row["accuracy"] == pytest.approx(expected)
        assert row["interval"] == interval(row["accuracy"], answered.sum().item())
        assert row["no_class"] == {"noise": np.mean(np.array([0.5, 0.85]) >= row["threshold"])}


def test_no_answer_has_no_accuracy():
    table = threshold_table(predictions([0.7, 0.8], [1, 0]), {})
    assert [(row["answered"], row["accuracy"]) for row in table[2:5]] == [
        (1, 0.5), (0.5, 0), (0, None),
    ]  # fmt: skip
    assert [row["interval"] is None for row in table[2:5]] == [False, False, True]


def test_answers_are_counted_by_their_class_from_the_least_reliable():
    """Of class 0 there are answers below the threshold only; class 2 is never the answer."""
    p = np.array([0.7, 0.9, 0.8, 0.95, 0.9, 0.85])
    true, predicted = np.array([0, 1, 1, 3, 3, 1]), np.array([0, 1, 1, 3, 3, 3])
    rows = answers_by_class(Predictions(true, predicted, true, p, p, p, p[:, None]), 0.8)
    assert [row[:3] for row in rows] == [(3, 3, pytest.approx(2 / 3)), (1, 2, 1)]
    assert rows[0].interval == interval(2 / 3, 3)


def test_the_curve_counts_images_of_equal_probability_together():
    p = predictions([0.6, 0.9, 0.6, 0.3], [0, 1, 1, 0])
    assert coverage_curve(p) == [(0.25, 1), (0.75, pytest.approx(2 / 3)), (1, 0.5)]


def test_a_long_curve_is_thinned_and_ends_with_all_images():
    p = predictions(np.linspace(0.1, 1, 5000).tolist(), [1] * 4000 + [0] * 1000)
    curve = coverage_curve(p)
    assert 100 < len(curve) <= 300
    assert curve[-1] == (1, 0.8)


def test_both_calibration_errors_are_those_of_their_logits():
    logits, labels = random_logits(10, 400)
    classes = tuple("abcdefghij")
    before = build_report(logits * 4, labels, classes, **ABOUT)
    after = build_report(logits * 4 / 2.5, labels, classes, **ABOUT, temperature=2.5)
    assert before.calibration_error_before is None
    assert after.calibration_error_before == pytest.approx(before.calibration_error, abs=1e-6)
    assert after.calibration_error != pytest.approx(before.calibration_error, abs=1e-3)
    assert (after.top1, after.confusion_matrix) == (before.top1, before.confusion_matrix)
    of_ensemble = build_report(logits, labels, classes, **ABOUT, temperature=None)
    assert of_ensemble.calibration_error_before is None
