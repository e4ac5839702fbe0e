"""The files of a report: their names, writing, reading and moving aside. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnet.checkpoints.calibration_images import MAY_BE_FITTED_HERE
from cifarnet.core.errors import RunError, UserError, reason
from cifarnet.core.files import exists, move_aside, read_file, write_atomically, write_text
from cifarnet.core.late import LateModule
from cifarnet.core.text import csv_text
from cifarnet.reporting.corruptions import (
    CORRUPTIONS,
    CorruptionRow,
    read_corruptions,
    read_rows,
    write_corruptions,
)

if TYPE_CHECKING:
    from cifarnet.reporting.metrics import Report
    from cifarnet.reporting.predictions import Predictions

np = LateModule("numpy")

CURVES = ("training_curves.png", "learning_rate_schedule.png")
PICTURES = ("confusion_matrix.png", "class_metrics.png")
PAGE = "report.html"
LABEL_ISSUES = "label_issues.csv"
REPORT_FILES = (
    *("metrics.json", "classification_report.txt", "predictions.csv", "predictions.npz"),
    *(LABEL_ISSUES, CORRUPTIONS, PAGE),
    *(*PICTURES, *CURVES),
)
RUN_JSON = ".run.json"  # stands in place of the .log of a run's log
RUN_JSON_FORMAT = 1
PREDICTION_COLUMNS = ("image", "true", "predicted", "probability_true", "probability_predicted")


class Attempts:
    """Writes files of which any may fail, whatever the error: the others are still written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.failures: list[str] = []

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """For a `with` block that writes the file `name`: its path."""
        try:
            with contextlib.suppress(OSError):  # else the block fails, and says why
                self.directory.mkdir(parents=True, exist_ok=True)  # it may have been moved away
            yield self.directory / name
        except Exception as problem:  # matplotlib passes on whatever the libraries below it raise
            self.failures.append(f"{name} ({reason(problem)})")

    def check(self) -> None:
        """Raises `RunError` if a file could not be written."""
        if self.failures:
            names = ", ".join(self.failures)
            raise RunError(f"report files could not be written to {self.directory}: {names}")


def write_report(
    report: Report,
    files: Attempts,
    names: Sequence[str | int],
    last: Report | None = None,
    best: Report | None = None,
    corruptions: Sequence[CorruptionRow] = (),
) -> dict[str, Any]:
    """Writes metrics.json, classification_report.txt, predictions.csv and predictions.npz.

    Removes page and pictures of another report first: they must not stand beside these files. Its
    corruptions.csv must have been moved: see `move_measured_report`. `names` are those of the
    images. `last` and `best` are the reports of a run's last and best model, where there are such.
    Writes `corruptions.csv` if there are `corruptions`. Returns the content of metrics.json.
    """
    figures = {
        name: value
        for name, value in vars(report).items()
        if name not in ("table", "predictions", "bins_before")
    }
    figures |= {"last": last and last.headline(), "best": best and best.headline()}
    former = _report_in(files.directory)
    if not _is_same(former, report):
        for name in (PAGE, *PICTURES):
            with files.write(name) as path:
                path.unlink(missing_ok=True)
    elif not last:  # evaluated again: keep what the run wrote
        figures |= {name: former[name] for name in ("last", "best", "run") if former.get(name)}
        figures["evaluated_by"] = report.run.get("command")
    with files.write(CORRUPTIONS):
        if corruptions:
            write_corruptions(corruptions, files.directory)
        table = read_corruptions(files.directory)
        figures["corruptions"] = table and {"mean_accuracy": table.mean, "images": table.images}
    with files.write("metrics.json") as path:
        write_text(path, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    with files.write("classification_report.txt") as path:
        write_text(path, _main_figures(report) + report.table)
    with files.write("predictions.csv") as path:
        write_predictions(report.predictions, list(report.per_class), names, path)
    with files.write("predictions.npz") as path:
        write_probabilities(report.predictions, list(report.per_class), names, path)
    return figures


def corruptions_beside(weights: Path, report: Report) -> list[CorruptionRow]:
    """The rows of the corruptions.csv beside `weights`, as in results/; none unless metrics.json
    there is on the same weights, temperature, views and images as `report`. Raises `UserError` for
    a damaged file."""
    table = weights.with_name(CORRUPTIONS)
    same = table.is_file() and _is_same(_report_in(weights.parent), report)
    return read_rows(table) if same else []


def _main_figures(report: Report) -> str:
    low, high = report.interval
    about = f"{report.epoch_in_words()}; {report.selected_by}"
    lines = [
        f"{report.dataset}: {report.images} test images",
        f"snapshot: {report.network()} ({about})",
        *([] if report.parameters is None else [f"parameters: {report.parameters:,}"]),
        f"evaluated: {time.strftime('%Y-%m-%d %H:%M:%S')}",
        "",
        *(f"top-{k} accuracy: {share:.4f}" for k, share in report.tops().items()),
        f"95 % interval of top-1: {low:.4f} to {high:.4f}",
        f"loss: {report.loss:.4f}",
        report.calibration(),
        *([f"warning: {MAY_BE_FITTED_HERE}"] if report.may_be_fitted_here else []),
    ]
    return "\n".join([*lines, "", ""])


def write_predictions(
    predictions: Predictions, classes: Sequence[str], names: Sequence[str | int], path: Path
) -> None:
    """Writes a row per image as CSV, with `PREDICTION_COLUMNS`. `names` are those of the images.
    Raises `OSError`."""
    p, rows = predictions, [PREDICTION_COLUMNS]
    for image, true, predicted, p_true, p_predicted in zip(
        names, p.true, p.predicted, p.p_true, p.p_predicted, strict=True
    ):
        named = classes[true], classes[predicted]
        rows.append((image, *named, f"{p_true:.6g}", f"{p_predicted:.6g}"))
    write_text(path, csv_text(rows))


def write_probabilities(
    predictions: Predictions, classes: Sequence[str], names: Sequence[str | int], path: Path
) -> None:
    """Writes the probabilities of all classes, float32 [N,C], as a numpy archive, with `labels`
    int64 [N], `classes` str [C] and `paths` str [N], as in predictions.csv. Raises `OSError`."""
    arrays = {
        "probabilities": predictions.probabilities.astype(np.float32),
        "labels": predictions.true,
        "classes": np.array(classes),
        "paths": np.array(list(map(str, names))),
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def move_other_report(directory: Path, report: Report) -> Path | None:
    """Moves a report in `directory` on other weights, images or another temperature than
    `report` into a new dated subfolder, with its pictures. The curves stay, unless they are of
    another run. Returns the subfolder; None: nothing was moved. Raises `OSError`."""
    former = _report_in(directory)
    if _is_same(former, report):
        return None
    run_id = former.get("run", {}).get("id")
    curves_stay = not former or (run_id and run_id == report.run.get("id"))
    return _move(directory, [n for n in REPORT_FILES if not (curves_stay and n in CURVES)])


def move_measured_report(directory: Path, report: Report) -> Path | None:
    """`move_other_report` for a report with a corruptions.csv, which took long to measure."""
    return move_other_report(directory, report) if exists(directory / CORRUPTIONS) else None


def move_report_of_other_run(directory: Path, run_id: str, is_new: bool) -> Path | None:
    """Moves a report of another run than `run_id` in `directory` into a new dated subfolder. If the
    run `is_new`, all files there are of another one. Returns the subfolder; None: nothing was
    moved. Raises `OSError`."""
    former = _report_in(directory)
    is_other = is_new or (former and former.get("run", {}).get("id") != run_id)
    return _move(directory, REPORT_FILES) if is_other else None


def _move(directory: Path, names: Iterable[str]) -> Path | None:
    """Moves those of the files that exist into a new dated subfolder."""
    return move_aside([path for path in map(directory.joinpath, names) if exists(path)], directory)


def read_report(path: Path) -> dict[str, Any]:
    """The content of the metrics.json `path`. Accuracies, losses, epochs and settings have their
    types; earlier versions wrote fewer keys. Raises `UserError`."""
    content = read_file(path)
    try:
        report = json.loads(content)
        models = [report, *(report[name] for name in ("last", "best") if report.get(name))]
        settings = report.get("run", {}).get("settings", {})
        typed = isinstance(report["dataset"], str) and isinstance(settings, dict)
        corrupted = (report.get("corruptions") or {"mean_accuracy": 0.0})["mean_accuracy"]
        if (
            not typed
            or not all(
                isinstance(model["epoch"], int | str) and isinstance(model[name], float | int)
                for model in models
                for name in ("top1", "loss")
            )
            or not isinstance(corrupted, float)
        ):
            raise TypeError("a value has another type")
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise UserError(
            f"{path} is not a metrics.json of main.py or evaluate.py; evaluate.py writes one"
        ) from None
    return report


def _report_in(directory: Path) -> dict[str, Any]:
    """The report in `directory`; empty where there is none that can be read."""
    with contextlib.suppress(UserError):
        return read_report(directory / "metrics.json")
    return {}


def _is_same(former: dict[str, Any], report: Report) -> bool:
    """Whether the report `former` is of the same weights, temperature, views and images as
    `report`. Earlier versions wrote no temperature: there was none, or none of an ensemble. They
    wrote no checksum of the images either."""
    earlier = {"temperature": None if former.get("members") else 1.0}
    former = earlier | {"images_sha256": report.images_sha256} | former
    same = ("sha256", "temperature", "tta", "dataset", "images", "images_sha256")
    if _temperatures(former.get("members") or []) != _temperatures(report.members):
        return False
    return all(former.get(name) == getattr(report, name) for name in same)


def _temperatures(members: Sequence[dict[str, Any]]) -> list[float]:
    return [member.get("temperature", 1.0) for member in members]
