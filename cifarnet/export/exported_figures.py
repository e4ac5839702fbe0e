"""The figures that go with an exported model: from the metrics.json that --metrics names."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.checks import check_fields
from cifarnet.checkpoints.trained import TrainedModel
from cifarnet.core.errors import UserError
from cifarnet.reporting.report_files import read_report


@dataclass(frozen=True)
class Averages:
    """Averages over the classes, in [0, 1]."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassFigures(Averages):
    """The figures of a class."""

    support: int  # images


@dataclass(frozen=True)
class Figures:
    """What export.py and the model card need of a metrics.json, with the types that it has."""

    top1: float
    top3: float
    top5: float
    loss: float
    calibration_error: float
    interval: list[float]  # of top-1
    images: int
    macro: Averages
    per_class: dict[str, ClassFigures]
    epoch: int
    dataset: str
    weights: str  # "raw" or "ema"
    sha256: str  # of the network


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of the metrics.json `path`, which --metrics names. Raises `UserError`."""
    try:
        report = read_report(path)
    except UserError as problem:
        raise UserError(f"--metrics {problem}") from None
    if report.get("members") or report.get("tta", "none") != "none":
        raise UserError(
            f"--metrics {path} is of an ensemble, or of a network with --tta; evaluate the "
            f"network alone, without --tta"
        )
    try:
        check_fields(Figures, report)
        if len(report["interval"]) != 2 or not 0 <= report["top1"] <= 1:
            raise ValueError("its figures do not fit together")
    except ValueError as problem:
        raise UserError(f"--metrics {path}: {problem}; evaluate.py writes another") from None
    return report


def with_accuracy(model: TrainedModel, metrics: dict[str, Any], path: Path) -> TrainedModel:
    """`model` with the accuracy in `metrics`, read from `path`. Raises `UserError` if those are of
    another model."""
    origin = model.origin
    names = ("epoch", "dataset", "weights")
    theirs, ours = (
        ", ".join(f"{name} {values[name]}" for name in names) for values in (metrics, vars(origin))
    )
    if (theirs, list(metrics["per_class"])) != (ours, list(model.classes)):
        raise UserError(
            f"--metrics {path} is of another model: {theirs}; the weights to export are: {ours}"
        )
    if metrics["sha256"] != model.sha256:
        raise UserError(
            f"--metrics {path} is of other weights, perhaps of another run; evaluate.py writes one"
        )
    measured_on = f"{path.name}, {metrics['images']} images"
    origin = dataclasses.replace(origin, accuracy=metrics["top1"], accuracy_from=measured_on)
    return dataclasses.replace(model, origin=origin)
