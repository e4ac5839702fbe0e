"""What report.html says on how far to trust a network: summary, and when to believe an answer."""

from collections.abc import Sequence
from typing import Any

from cifarnet.reporting.charts import Axis, Chart, Curve, line_chart, percent
from cifarnet.reporting.confidence import EXAMPLE, answers_by_class, coverage_curve
from cifarnet.reporting.metrics import Report
from cifarnet.reporting.predictions import Bin, interval, reliability

FEW = 20  # images in a bin of probability: with fewer, its accuracy means little
LEAST_RELIABLE = 10  # classes, in the table of the answers
NO_CLASS_AT = (0.5, 0.8, 0.95, 0.99)  # thresholds in the table of pictures of no class


def confidence_facts(report: Report) -> dict[str, Any]:
    """What the summary and the sections on probabilities show of `report`."""
    example = next(row for row in report.thresholds if row["threshold"] == EXAMPLE)
    answers = answers_by_class(report.predictions, EXAMPLE)
    below = report.predictions.p_predicted < EXAMPLE
    hits = report.predictions.true == report.predictions.predicted
    tested = {name: row for name, row in report.per_class.items() if row["support"]}
    weakest = min(tested, key=lambda name: tested[name]["recall"])
    recall = tested[weakest]["recall"]
    return {
        "example": example,
        "accuracy_below": hits[below].mean() if below.any() else None,
        "answers": answers[:LEAST_RELIABLE],
        "answered_classes": len(answers),
        "unreliable": [row.label for row in answers if row.interval[1] < example["accuracy"]],
        "no_class_rows": [r for r in report.thresholds if r["threshold"] in NO_CLASS_AT],
        "most_answered": max(example["no_class"].items(), key=lambda kind: kind[1], default=None),
        "weakest": (weakest, recall, interval(recall, int(tested[weakest]["support"]))),
        "coverage": _coverage_chart(report),
        "calibration_chart": _calibration_chart(report) if report.bins_before else None,
        "mean_probability": report.predictions.p_predicted.mean(),
        "few": FEW,
    }


def _coverage_chart(report: Report) -> Chart:
    """The accuracy of the surest answers."""
    curve = Curve("accuracy", "blue", coverage_curve(report.predictions))
    x_axis = Axis("share of the images answered, the surest first", percent)
    return line_chart("accuracy of the answers", [curve], x_axis, Axis(form=percent))


def _calibration_chart(report: Report) -> Chart:
    """The accuracy by probability of a calibrated network, and without its temperature."""
    parts = (
        ("ideal", "soft", [(share, share) for share in (0, 1)]),
        ("before", "red", _reliability_points(report.bins_before)),
        ("calibrated", "blue", _reliability_points(reliability(report.predictions))),
    )
    x_axis = Axis("predicted probability", percent)
    curves = [Curve(*part) for part in parts]
    return line_chart("accuracy by probability", curves, x_axis, Axis(form=percent))


def _reliability_points(bins: Sequence[Bin]) -> list[tuple[float, float]]:
    return [(each.confidence, each.accuracy) for each in bins if each.images >= FEW]
