"""The files of a report: how they are written, read, and moved out of the way.

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnet.core.errors import UserError
from cifarnet.core.files import dated_folder, write_text

if TYPE_CHECKING:
    from cifarnet.reporting.metrics import Report
    from cifarnet.reporting.predictions import Predictions

CURVES = ("training_curves.png", "learning_rate_schedule.png")
PICTURES = ("confusion_matrix.png", "class_metrics.png")
PAGE = "report.html"
REPORT_FILES = (
    *("metrics.json", "classification_report.txt", "predictions.csv", PAGE),
    *(*PICTURES, *CURVES),
)
PREDICTION_COLUMNS = ("image", "true", "predicted", "probability_true", "probability_predicted")


def write_report(
    report: Report,
    directory: Path,
    paths: Sequence[str] | None = None,
    last: Report | None = None,
    best: Report | None = None,
) -> dict[str, Any]:
    """Writes metrics.json, classification_report.txt and predictions.csv. Raises `OSError`.

    Removes page and pictures of another network or other images: they must not stand beside these.
    `paths` name the images. `last` and `best` are the reports of a run's last and best model, where
    there are such. Returns what metrics.json says.
    """
    figures = {
        name: value for name, value in vars(report).items() if name not in ("table", "predictions")
    }
    figures |= {"last": last and last.headline(), "best": best and best.headline()}
    there = _report_in(directory)
    same = _is_same(there, report)
    if not last and same:  # evaluated again: what the run said stays
        figures |= {name: there[name] for name in ("last", "best", "run") if there.get(name)}
        figures["evaluated_by"] = report.run.get("command")
    write_text(directory / "metrics.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")

    low, high = report.interval
    tops = "".join(f"top-{k} accuracy: {share:.4f}\n" for k, share in report.tops().items())
    about = f"epoch {report.epoch}, {report.weights} weights, {report.selected_by}"
    count = report.parameters
    parameters = "" if count is None else f"parameters: {count:,}\n"
    head = (
        f"{report.dataset}: {report.images} test images\n"
        f"snapshot: {report.network()} ({about})\n"
        f"{parameters}"
        f"evaluated: {time.strftime('%Y-%m-%d %H:%M:%S')}\n\n"
        f"{tops}95 % interval of top-1: {low:.4f} to {high:.4f}\n"
        f"loss: {report.loss:.4f}\ncalibration error: {report.calibration_error:.4f}\n\n"
    )
    write_text(directory / "classification_report.txt", head + report.table)
    if not same:
        for name in (PAGE, *PICTURES):
            (directory / name).unlink(missing_ok=True)
    path = directory / "predictions.csv"
    write_predictions(report.predictions, list(report.per_class), paths, path)
    return figures


def write_predictions(
    predictions: Predictions, classes: Sequence[str], paths: Sequence[str] | None, path: Path
) -> None:
    """Writes a row an image as CSV, with `PREDICTION_COLUMNS`. Raises `OSError`.

    `paths` name the images; None: they are numbered from 0.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PREDICTION_COLUMNS)
    p = predictions
    images = range(len(p.true)) if paths is None else paths
    for image, true, predicted, p_true, p_predicted in zip(
        images, p.true, p.predicted, p.p_true, p.p_predicted, strict=True
    ):
        named = classes[true], classes[predicted]
        writer.writerow((image, *named, f"{p_true:.6g}", f"{p_predicted:.6g}"))
    write_text(path, text.getvalue())


def move_other_report(directory: Path, report: Report) -> Path | None:
    """Moves the report in `directory`, with its pictures, into a new dated subfolder.

    A report on the same weights and images as `report` stays. Returns the subfolder, or None if
    nothing was moved. Raises `OSError`.
    """
    files = [path for path in map(directory.joinpath, REPORT_FILES) if path.is_file()]
    there = _report_in(directory)
    if not there or _is_same(there, report):
        return None
    if there.get("run", {}).get("id") and there["run"]["id"] == report.run.get("id"):
        files = [path for path in files if path.name not in CURVES]  # those of this run
    folder = dated_folder(directory)
    for path in files:
        path.replace(folder / path.name)
    return folder


def read_report(path: Path) -> dict[str, Any]:
    """What the metrics.json `path` says.

    Shares, epochs and settings in it have their types. Earlier versions wrote fewer keys. Raises
    `UserError`.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        models = [report, *(report[name] for name in ("last", "best") if report.get(name))]
        settings = report.get("run", {}).get("settings", {})
        typed = isinstance(report["dataset"], str) and isinstance(settings, dict)
        if not typed or not all(
            isinstance(model["epoch"], int | str) and isinstance(model[name], float | int)
            for model in models
            for name in ("top1", "loss")
        ):
            raise TypeError("a value has another type")
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem.strerror}); name another file") from None
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise UserError(
            f"{path} is no metrics.json of main.py or evaluate.py; evaluate.py writes one"
        ) from None
    return report


def _report_in(directory: Path) -> dict[str, Any]:
    """The report in `directory`; empty where there is none that can be read."""
    with contextlib.suppress(UserError):
        return read_report(directory / "metrics.json")
    return {}


def _is_same(there: dict[str, Any], report: Report) -> bool:
    """Whether the report `there` is of the same weights, views and images as `report`."""
    there = {"tta": "none"} | there  # reports of earlier versions lack it
    same = ("sha256", "tta", "dataset", "images")
    return all(there.get(name) == getattr(report, name) for name in same)
