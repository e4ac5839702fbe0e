"""Files of a run that are moved away or removed while it trains."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from support.commands import DRAWN, QUICK
from support.outputs import epoch_of, figures

import train
from cifarnet.core.errors import UserError

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


def test_a_new_run_moves_the_report_of_another_one_aside_though_it_is_stopped(command, monkeypatch):
    assert command("main", *DRAWN, "--epochs", "1").code == 0
    plots = Path("plots_complete")
    first = {path.name: path.read_bytes() for path in plots.iterdir()}
    run_epoch = train.run_epoch

    def stopped(learner, *arguments):
        if learner.progress.epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(learner, *arguments)

    monkeypatch.setattr(train, "run_epoch", stopped)
    done = command("main", *DRAWN, "--seed", "7")
    assert done.code == 130
    (moved,) = plots.glob("before_*")
    assert f"moved the report of an earlier run to {moved}\n" in done.out
    assert {path.name: path.read_bytes() for path in moved.iterdir()} == first
    left = {path.name for path in plots.iterdir()} - {moved.name}
    assert left == {"training_curves.png", "learning_rate_schedule.png"}

    monkeypatch.setattr(train, "run_epoch", run_epoch)
    assert command("main", *QUICK, "--seed", "7", "--resume", "auto").code == 0
    assert list(plots.glob("before_*")) == [moved]
    assert figures()["run"]["settings"]["seed"] == 7


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
    done = command("main", *QUICK, "--plot_training", "--report")
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


def test_a_run_whose_old_snapshots_cannot_be_read_leaves_no_log(command, monkeypatch):
    assert command("main", *DRAWN, "--epochs", "1").code == 0

    def refuse(*arguments):
        raise UserError("best_model.pth cannot be read")

    monkeypatch.setattr("commands.run_setup.outdated", refuse)
    before = sorted(Path().rglob("*"))
    assert command("main", *DRAWN, "--resume", "auto").code == 2
    assert sorted(Path().rglob("*")) == before
