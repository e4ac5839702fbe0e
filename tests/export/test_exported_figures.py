"""metrics.json as the source of figures; end_to_end/test_export.py reads real ones."""

import json
from pathlib import Path

import pytest
from support.snapshots import make_trained

from cifarnet.core.errors import UserError
from cifarnet.export.exported_figures import (
    cautions,
    metrics_beside,
    read_metrics,
    threshold_rows,
    with_accuracy,
)

SHARES = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}
ROW = SHARES | {"support": 20}
MODEL = make_trained()
REPORT = {
    **{"epoch": 3, "dataset": "pictures", "weights": "raw", "sha256": MODEL.sha256},
    **{"top1": 0.625, "top3": 1.0, "top5": 1.0, "loss": 0.5, "images": 40},
    **{"interval": [0.5, 0.75], "calibration_error": 0.125},
    **{"macro": SHARES, "per_class": {"a": ROW, "ü": ROW}},
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "metrics.json"
    path.write_text(json.dumps(REPORT | changes))
    return path


def test_the_model_takes_the_accuracy_and_its_source(tmp_path):
    path = write(tmp_path)
    metrics = read_metrics(path)
    origin = with_accuracy(MODEL, metrics, path).origin
    assert (origin.accuracy, origin.accuracy_from) == (0.625, "metrics.json, 40 images")
    assert metrics == REPORT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tta": "flip"}, "of an ensemble, or of a network with --tta"),
        ({"members": [{}, {}]}, "of an ensemble, or of a network with --tta"),
        ({"top1": 1.5}, "are inconsistent"),
        ({"interval": [0.5]}, "are inconsistent"),
        ({"macro": None}, "'macro' is not of type dict"),
        ({"per_class": {"a": {}}}, "are inconsistent"),
        ({"per_class": {"a": []}}, "'per_class' is not of type"),
        ({"weights": "ema"}, "is of another model: .*weights ema; the weights to export are"),
        ({"per_class": {"ü": ROW, "a": ROW}}, "is of another model"),
        ({"sha256": "0"}, "is of other weights"),
        ({"temperature": 2.0}, "is of another temperature"),
    ],
    ids=str,
)
def test_other_reports_are_refused(tmp_path, change, words):
    path = write(tmp_path, **change)
    with pytest.raises(UserError, match=f"^--metrics .*{words}"):
        with_accuracy(MODEL, read_metrics(path), path)


ROWS = [
    {"threshold": 0.5, "answered": 0.75, "accuracy": 0.8, "no_class": {}},
    {"threshold": 0.99, "answered": 0.0, "accuracy": None},
]


def test_the_thresholds_begin_without_one():
    rows = threshold_rows(MODEL, REPORT | {"thresholds": ROWS})
    assert rows == [[0.0, 1.0, 0.625], [0.5, 0.75, 0.8], [0.99, 0.0, None]]


@pytest.mark.parametrize(
    "change",
    [
        *({"sha256": "0"}, {"temperature": 2.0}, {"tta": "flip"}, {"dataset": "other images"}),
        *({"thresholds": []}, {"thresholds": 3}, {"thresholds": ["x"]}),
        {"thresholds": [{"threshold": 0.5, "answered": "<b>", "accuracy": 0.8}]},
    ],
    ids=str,
)
def test_other_thresholds_are_not_taken(change):
    with pytest.raises(UserError, match=r"^metrics.json (is of other weights|has no thresholds)"):
        threshold_rows(MODEL, REPORT | {"thresholds": ROWS} | change)


def test_cautions_are_of_what_was_measured():
    """0.625 of all are right, and 0.95 of the half above 80 %: so 0.3 of the others."""
    row = {"threshold": 0.8, "answered": 0.5, "accuracy": 0.95}
    per_class = {"a": ROW, "<b>": ROW | {"recall": 0.125}, "c": ROW | {"recall": 0, "support": 0}}
    metrics = REPORT | {"thresholds": [*ROWS, row], "per_class": per_class}
    below, weakest = cautions(metrics)
    assert below == "Of its answers below 80%, 30.0% are right."
    assert weakest == "Its weakest class is <b>: it recognises 12.5% of its images."
    row["no_class"] = {"noise": 0.5, "one colour": 0.75}
    metrics["corruptions"] = {"mean_accuracy": 0.375, "images": 40}
    _, no_class, _, corrupted = cautions(metrics)
    assert no_class.endswith(": up to 75% of them (one colour) with 80% or more.")
    assert "37.5" in corrupted and corrupted.endswith("62.5%.")
    row["accuracy"] = 1.25 + 1e-9  # none below is right; rounding
    assert cautions(metrics)[0] == "Of its answers below 80%, 0.0% are right."
    row["answered"] = 1.0  # none is below
    assert cautions(metrics)[0] == no_class
    row["no_class"] = {"noise": 0.0}
    perfect = {"thresholds": [row], "per_class": {"a": ROW | {"recall": 1.0}}}
    assert cautions(REPORT | perfect) == []


@pytest.mark.parametrize(
    "change",
    [
        *({"corruptions": [1]}, {"per_class": 3}, {"per_class": {}}),
        {"thresholds": [{"threshold": 0.8, "answered": 0.5, "accuracy": 0.95, "no_class": "x"}]},
    ],
    ids=str,
)
def test_cautions_of_another_form_are_refused(change):
    with pytest.raises(UserError, match=r"^metrics\.json has figures of another form$"):
        cautions(REPORT | {"thresholds": ROWS} | change)


@pytest.mark.parametrize("folder", ["snapshots_complete", "plots_complete"])
def test_the_report_lies_beside_the_weights_or_in_the_folder_of_the_run(tmp_path, folder):
    weights = tmp_path / "snapshots_complete/last.pth"
    (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match=r"there is no metrics\.json beside the weights"):
        metrics_beside(weights)
    write(tmp_path / folder)
    assert metrics_beside(weights) == REPORT
