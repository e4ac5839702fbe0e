"""Reads run.json, the history and other tables that a run leaves. Imports no torch."""

import csv
import dataclasses
import io
import json
import typing
from collections.abc import Sequence
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.history import COLUMNS, Row
from cifarnet.core.errors import UserError
from cifarnet.core.files import read_file
from cifarnet.reporting.report_files import RUN_JSON_FORMAT
from cifarnet.settings import FLAGS
from cifarnet.settings.flags import value_type


@dataclass(frozen=True)
class RunFacts:
    """The part of a run.json that a comparison needs. None: not known."""

    run_id: str | None = None
    started: str | None = None  # in ISO 8601
    settings: dict[str, Any] = field(default_factory=dict)  # by flag; older ones lack some
    machine: str | None = None  # the device, in words
    dataset: str | None = None
    test_images: int | None = None
    tested_on: str | None = None  # the data set of the figures, if it is another one
    parameters: int | None = None
    epochs_done: int = 0
    comparable_after: int = 0  # see `Progress`
    top1: float | None = None  # of the last model on the test images, in [0, 1]
    tta: str = "none"  # the views that the figures are of
    weights: str | None = None  # "raw" or "ema": those that the figures are of
    corrupted: float | None = None  # the mean under corruption, in [0, 1]
    calibration_error: float | None = None  # of the last model on the test images, in [0, 1]
    calibration_error_before: float | None = None  # without its temperature, if it has one
    plot_dir: str | None = None


def read_record(path: Path) -> RunFacts:
    """Reads the run.json `path`. Raises `UserError` for another file."""
    content = read_file(path)
    try:
        keys = json.loads(content)
        parts = ("device", "dataset", "model", "figures")
        device, dataset, model, figures = (keys[name] or {} for name in parts)
        record = RunFacts(
            run_id=keys["run_id"],
            started=keys["started"],
            settings={name: value for name, value in keys["settings"].items() if name in FLAGS},
            machine=f"{device['type']} ({device['name']})" if device else None,
            dataset=dataset.get("name"),
            test_images=dataset.get("test"),
            parameters=model.get("parameters"),
            epochs_done=keys["epochs_done"],
            comparable_after=keys.get("comparable_after", 0),
            top1=(figures.get("last") or {}).get("top1"),
            plot_dir=keys["plot_dir"],
        )
        specs = [spec for spec in dataclasses.fields(record) if spec.name != "settings"]
        typed = all(isinstance(getattr(record, spec.name), spec.type) for spec in specs)
        if keys["format"] != RUN_JSON_FORMAT or not typed:
            raise ValueError("another format")
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise UserError(
            f"{path} is not a run.json of this version; name the history (.csv) instead"
        ) from None
    return record


def read_history(path: Path) -> list[Row]:
    """The rows of the history `path`, a CSV file. Raises `UserError`."""
    specs = dataclasses.fields(Row)
    try:
        return [
            Row(**{spec.name: _cell(spec, row[spec.name]) for spec in specs})
            for row in read_table(path, COLUMNS)
        ]
    except ValueError as problem:
        raise UserError(
            f"{path} is not a history ({problem}); name a file that a run wrote"
        ) from None


def _cell(spec: Field, text: str) -> float | None:
    """The value of a cell; a column of optional values may be blank. Raises `ValueError`."""
    if not text and type(None) in typing.get_args(spec.type):
        return None
    return value_type(spec)(text)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of the CSV file `path`, which must have `columns`. Raises `UserError`.

    A last row that is not whole, because it is being written, is left out.
    """
    try:
        # Excel begins a file with a signature; paths need not be UTF-8.
        text = read_file(path).decode("utf-8-sig", errors="backslashreplace")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    except csv.Error as problem:
        raise UserError(f"{path} is not a CSV file ({problem}); name another one") from None
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            f"{path} lacks the columns {', '.join(missing)}; name a file that a run wrote"
        )
    if rows and None in rows[-1].values():
        rows.pop()
    return rows


def read_predictions(path: Path) -> dict[str, dict[str, str]]:
    """The rows of the predictions.csv `path`, by image. Raises `UserError`."""
    rows = read_table(path, ("image", "true", "predicted", "probability_predicted"))
    by_image = {row["image"]: row for row in rows}
    if not rows or len(by_image) < len(rows):
        raise UserError(f"{path} names no image, or one twice; write it again with evaluate.py")
    return by_image
