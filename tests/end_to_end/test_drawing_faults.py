"""Figures that cannot be drawn, whatever the error: all other files are written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import DRAWN, QUICK

from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.reporting.report_files import CURVES, PICTURES, REPORT_FILES

PLOTS = Path("plots_complete")
ROOT = Path(__file__).parents[2]
# What matplotlib raised for a user without an entry in /etc/passwd.
NO_USER = KeyError("getpwuid(): uid not found: 12345")
ALL = {*REPORT_FILES} - {"corruptions.csv"}


def fail(*arguments, **more):
    raise NO_USER


def files(directory: Path = PLOTS) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_file()}


def test_figures_that_cannot_be_drawn_cost_nothing_else(command, monkeypatch):
    figures = {"training_curves", "confusion_matrix"}
    for figure in figures:
        monkeypatch.setattr(f"plots.{figure}", fail)
    monkeypatch.setattr("plots.confusion_pixels", fail)
    done = command("main", *DRAWN, "--plot_freq", "1", "--tensorboard")
    assert done.code == 1
    assert done.err.startswith(f"error: {PLOTS / 'training_curves.png'} could not be drawn; see")
    assert done.err.count("\n") == 1
    for failure in (
        f"{PLOTS / 'training_curves.png'} could not be drawn (KeyError: {NO_USER}); it will be",
        f"{PLOTS / 'training_curves.png'} could not be drawn (KeyError: {NO_USER})\n",
        f"report files could not be written to {PLOTS}: confusion_matrix.png (KeyError: {NO_USER})",
        f"the events for TensorBoard could not be written (KeyError: {NO_USER})",
    ):
        assert f"warning: {failure}" in done.out
    assert {f"{figure}.png" for figure in figures} == ALL - files()
    (record,) = map(json.loads, (path.read_text() for path in Path("log").glob("*.run.json")))
    assert (record["epochs_done"], record["figures"]["last"]["epoch"]) == (2, 2)


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        ("plots.class_metrics", {"class_metrics.png"}),
        ("commands.evaluation.write_page", {"report.html"}),
        ("commands.report_content.augmented_examples", {"report.html"}),
        ("cifarnet.reporting.report_files.write_predictions", {"predictions.csv"}),
    ],
)
def test_a_file_that_cannot_be_written_costs_no_other(
    command, trained, monkeypatch, function, missing
):
    settings = read_snapshot(trained.snapshot).settings.replace(augment="full")
    monkeypatch.setattr("cifarnet.checkpoints.trained.ModelInfo.settings", settings)
    monkeypatch.setattr(function, fail)
    done = command("evaluate", "--snapshot", trained.snapshot, "--plot_dir", PLOTS)
    assert done.code == 1
    (name,) = missing
    failure = f"report files could not be written to {PLOTS}: {name} (KeyError: {NO_USER})"
    assert done.err == f"error: {failure}\n"
    assert ALL - files() - set(CURVES) == missing
    assert "top-1" in done.out


def test_a_preview_that_cannot_be_drawn_is_one_line(command, monkeypatch):
    monkeypatch.setattr("plots.augmentations", fail)
    done = command("main", *QUICK, "--preview_augment", "preview.png")
    assert done.code == 1
    failure = f"--preview_augment preview.png: cannot draw it (KeyError: {NO_USER})"
    assert done.err == f"error: {failure}\n"


BOTH = f"""
import json, sys
sys.path.append({str(ROOT)!r})
import evaluate, main
for command, flags in zip((main, evaluate), json.loads(sys.argv[1])):
    code = command.main(flags)
    for stream in (sys.stdout, sys.stderr):
        print("exit code", code, file=stream, flush=True)
"""


def test_if_matplotlib_cannot_be_imported_the_report_is_written(tmp_path, trained):
    """It fails so where it finds no writable folder for its settings."""
    (tmp_path / "matplotlib.py").write_text('raise OSError("requires a writable directory")')
    flags = [[*DRAWN, "--plot_dir", "run"]]
    flags += [["--snapshot", str(trained.snapshot), "--plot_dir", "again"]]
    done = subprocess.run(
        [sys.executable, "-c", BOTH, json.dumps(flags)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    streams = [text.split("exit code 1\n") for text in (done.stdout, done.stderr)]
    for folder, out, err in zip(("run", "again", ""), *streams, strict=True):
        if folder:
            assert "confusion_matrix.png (requires a writable directory)" in out + err
            assert files(tmp_path / folder) == ALL - {*CURVES, *PICTURES}
