"""The figures that go with an exported model: from a metrics.json."""

import dataclasses
from operator import itemgetter
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.checks import check_fields
from cifarnet.checkpoints.trained import ModelInfo, TrainedModel
from cifarnet.core.errors import UserError
from cifarnet.core.files import exists
from cifarnet.reporting.confidence import EXAMPLE
from cifarnet.reporting.report_files import read_report
from cifarnet.settings.output import PLOTS

OF_A_CLASS = ("precision", "recall", "f1", "support")
FIGURES = {  # what export.py and the model card need of a metrics.json, with their types there
    **dict.fromkeys(("top1", "top3", "top5", "loss", "calibration_error"), float),
    **{"interval": list[float], "images": int, "epoch": int},
    **dict.fromkeys(("dataset", "weights", "sha256"), str),
    **{"macro": dict[str, float], "per_class": dict[str, dict[str, float]]},
}
ROW = {"threshold": float, "answered": float, "accuracy": float | None}  # of `thresholds`


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
        check_fields(FIGURES, report)
        complete = "f1" in report["macro"] and all(
            row.keys() >= set(OF_A_CLASS) for row in report["per_class"].values()
        )
        if not (complete and len(report["interval"]) == 2 and 0 <= report["top1"] <= 1):
            raise ValueError("its figures are inconsistent")
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
    if metrics.get("temperature", 1.0) != model.temperature:
        raise UserError(f"--metrics {path} is of another temperature; evaluate.py writes one")
    measured_on = f"{path.name}, {metrics['images']} images"
    origin = dataclasses.replace(origin, accuracy=metrics["top1"], accuracy_from=measured_on)
    return dataclasses.replace(model, origin=origin)


def metrics_beside(weights: Path) -> dict[str, Any]:
    """The metrics.json beside the file `weights`, as in results/, or in the folder of the report of
    the run that wrote them. Raises `UserError` if there is none, or none that can be read."""
    weights = weights.absolute()
    for folder in (weights.parent, weights.parent.parent / PLOTS):
        if exists(folder / "metrics.json"):
            return read_report(folder / "metrics.json")
    raise UserError("there is no metrics.json beside the weights; name one with --metrics")


def threshold_rows(model: ModelInfo, metrics: dict[str, Any]) -> list[list[float | None]]:
    """What each threshold lets through, by `metrics`: threshold, share of the test images that are
    answered, accuracy on these. The first row is without a threshold.

    Raises `UserError` if `metrics` are of another model, temperature, data set or view, or lack
    thresholds.
    """
    theirs = [metrics.get(name) for name in ("sha256", "dataset")]
    theirs += [metrics.get("temperature", 1.0), metrics.get("tta", "none")]
    if theirs != [model.sha256, model.origin.dataset, model.temperature, "none"]:
        raise UserError("metrics.json is of other weights or images, another temperature or --tta")
    rows = metrics.get("thresholds")
    try:
        for row in rows or [{}]:
            check_fields(ROW, row)
    except (TypeError, ValueError):
        raise UserError("metrics.json has no thresholds; evaluate.py writes them") from None
    everything = {"threshold": 0.0, "answered": 1.0, "accuracy": metrics["top1"]}
    return [[row[name] for name in ROW] for row in (everything, *rows)]


def cautions(metrics: dict[str, Any]) -> list[str]:
    """When not to trust the network, by `metrics` that `threshold_rows` takes: a sentence for each
    figure that is there. Raises `UserError` for figures of another form."""
    sentences = []
    try:
        rows = {row["threshold"]: row for row in metrics["thresholds"]}
        example = rows.get(EXAMPLE, {"answered": 1.0})
        if example["answered"] < 1:
            above = example["answered"] * (example["accuracy"] or 0)
            below = max(0, metrics["top1"] - above) / (1 - example["answered"])
            sentences.append(f"Of its answers below {EXAMPLE:.0%}, {below:.1%} are right.")
        if example.get("no_class"):
            kind, share = max(example["no_class"].items(), key=itemgetter(1))
            if share:
                sentences.append(
                    f"Images that show none of its classes get one too: up to {share:.0%} of them "
                    f"({kind}) with {EXAMPLE:.0%} or more."
                )
        classes = metrics["per_class"].items()
        recall, worst = min((row["recall"], name) for name, row in classes if row["support"])
        if recall < 1:
            sentences.append(
                f"Its weakest class is {worst}: it recognises {recall:.1%} of its images."
            )
        if metrics.get("corruptions"):
            mean = metrics["corruptions"]["mean_accuracy"]
            sentences.append(
                f"On bad images (noise, blur, weather, compression) {mean:.1%} of its answers are "
                f"right on average, on the clean ones {metrics['top1']:.1%}."
            )
    except (AttributeError, LookupError, TypeError, ValueError):
        raise UserError("metrics.json has figures of another form") from None
    return sentences
