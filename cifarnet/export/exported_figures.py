"""The figures that go with an exported model: from the metrics.json that --metrics names."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from cifarnet.checkpoints.trained import TrainedModel
from cifarnet.core.errors import UserError
from cifarnet.reporting.report_files import read_report


class Metrics(NamedTuple):
    """What export.py needs of a metrics.json."""

    accuracy: float  # top-1 in [0, 1]
    images: int  # that were tested
    classes: list[str]
    about: dict[str, Any]  # epoch, dataset and weights ("raw" or "ema")
    sha256: str  # of the network
    figures: dict[str, Any]  # those of the model card


def read_metrics(path: Path) -> Metrics:
    """Reads the metrics.json `path`, which --metrics names. Raises `UserError`."""
    try:
        report = read_report(path)
    except UserError as problem:
        raise UserError(f"--metrics {problem}") from None
    try:
        accuracy = float(report["top1"])
        if report.get("members") or report.get("tta", "none") != "none":
            raise UserError(
                f"--metrics {path} is of an ensemble, or of a network with --tta; evaluate the "
                f"network alone, without --tta"
            )
        if not 0 <= accuracy <= 1:
            raise ValueError
        return Metrics(
            accuracy=accuracy,
            images=int(report["images"]),
            classes=list(report["per_class"]),
            about={name: report[name] for name in ("epoch", "dataset", "weights")},
            sha256=report["sha256"],
            figures=_figures(report),
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise UserError(
            f"--metrics {path} lacks figures, or they have a wrong type; evaluate.py writes another"
        ) from None


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a metrics.json that the model card shows."""
    shares = ("top1", "top3", "top5", "loss", "calibration_error")
    figures = {name: float(report[name]) for name in shares if name in report}
    figures |= {"images": int(report["images"]), "macro_f1": float(report["macro"]["f1"])}
    if "interval" in report:  # of top-1
        figures["low"], figures["high"] = map(float, report["interval"])
    names = ("precision", "recall", "f1", "support")
    figures["per_class"] = {
        label: {name: float(row[name]) for name in names}
        for label, row in report["per_class"].items()
    }
    return figures


def with_accuracy(model: TrainedModel, metrics: Metrics, path: Path) -> TrainedModel:
    """`model` with the accuracy in `metrics`, read from `path`. Raises `UserError` if those are of
    another model."""
    origin = model.origin
    about = {"epoch": origin.epoch, "dataset": origin.dataset, "weights": origin.weights}
    if (metrics.about, metrics.classes) != (about, list(model.classes)):
        theirs, ours = (
            ", ".join(f"{name} {value}" for name, value in facts.items())
            for facts in (metrics.about, about)
        )
        raise UserError(
            f"--metrics {path} is of another model: {theirs}; the weights to export are: {ours}"
        )
    if metrics.sha256 != model.sha256:
        raise UserError(
            f"--metrics {path} is of other weights, perhaps of another run; evaluate.py writes one"
        )
    measured_on = f"{path.name}, {metrics.images} images"
    origin = dataclasses.replace(origin, accuracy=metrics.accuracy, accuracy_from=measured_on)
    return dataclasses.replace(model, origin=origin)
