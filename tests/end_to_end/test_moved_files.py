"""Files of a run that are moved away or removed while it trains."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from support.commands import DRAWN
from support.outputs import epoch_of

import train

FOLDERS = ("log", "snapshots_complete", "plots_complete")


def move_files() -> None:
    for folder in FOLDERS:
        Path("old", folder).mkdir(parents=True)
        for path in Path(folder).iterdir():
            path.rename(Path("old", folder, path.name))


def move_folders() -> None:
    Path("old").mkdir()
    for folder in FOLDERS:
        Path(folder).rename(Path("old", folder))


def remove_folders() -> None:
    for folder in FOLDERS:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("change", "epoch"), [(move_files, 2), (move_folders, 2), (remove_folders, 1)]
)
def test_a_run_whose_files_are_moved_away_leaves_whole_ones(command, monkeypatch, change, epoch):
    run_epoch = train.run_epoch

    def disturbed(learner, *arguments):
        if learner.progress.epoch == epoch - 1:
            change()
        return run_epoch(learner, *arguments)

    monkeypatch.setattr(train, "run_epoch", disturbed)
    done = command("main", *DRAWN)
    assert (done.code, done.err) == (0, "")
    assert "warning" not in done.out
    (log,) = Path("log").glob("*.log")
    with log.with_suffix(".csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    lines, printed = log.read_text().splitlines(), done.out.splitlines()
    assert lines[0].endswith(printed[0]) and lines[-1].endswith(printed[-1])
    assert json.loads(log.with_suffix(".run.json").read_text())["status"] == "finished"
    assert epoch_of("last.pth") == 2
    made = {path.name for path in Path("plots_complete").iterdir()}
    assert {"metrics.json", "training_curves.png", "report.html"} <= made
