import csv
import os
import re
from pathlib import Path

import pytest
from support.snapshots import make_row

from cifarnet.checkpoints.history import COLUMNS, Progress
from cifarnet.core.errors import RunError
from cifarnet.core.log import RunLog
from cifarnet.reporting import recorders
from cifarnet.reporting.recorders import Curves, HistoryCsv, LogLine, Recorder, Recorders
from cifarnet.settings import Settings


class Lines:
    """A log that keeps its lines."""

    def __init__(self, path: Path | None = None) -> None:
        self.lines, self.path = [], path

    def line(self, text: str) -> None:
        self.lines.append(text)


def progress_of(*rows) -> Progress:
    return Progress(history=list(rows))


class Heard(Recorder):
    """Keeps what it is told of; fails while `broken`."""

    failure = "this one could not be written"

    def __init__(self, broken: bool = False) -> None:
        self.events, self.broken = [], broken

    def start(self, progress):
        self.hear("start")

    def row(self, progress):
        self.hear(f"row {progress.epoch}")

    def end(self, progress):
        self.hear("end")

    def report(self, report):
        self.hear("report")

    def close(self, status, figures):
        self.hear(status)

    def hear(self, event):
        if self.broken:
            raise OSError(28, "No space left on device")
        self.events.append(event)


def recorders_of(*kept: Recorder, log=None) -> Recorders:
    return Recorders(kept, log or Lines(), lambda work: work())


def test_a_folder_that_cannot_be_made_again_costs_no_other_file(tmp_path):
    """As where the disk of one folder is gone: a file stands in its place here."""
    (tmp_path / "gone").touch()
    heard, folders = Heard(), [tmp_path / "gone" / "log", tmp_path / "snapshots"]
    Recorders([heard], Lines(), lambda work: work(), folders).start(Progress())
    assert (heard.events, folders[1].is_dir()) == (["start"], True)


def test_one_that_fails_does_not_hurt_the_others():
    log, broken, heard = Lines(), Heard(broken=True), Heard()
    all_of_them = recorders_of(broken, heard, log=log)
    progress = Progress()
    all_of_them.start(progress)
    progress.history.append(make_row(1))
    all_of_them.row(progress)
    all_of_them.end(progress)
    assert heard.events == ["start", "row 1", "end"]
    warning = "warning: this one could not be written (No space left on device)"
    assert log.lines == [f"{warning}; it will be tried again"] * 2 + [warning]
    with pytest.raises(RunError, match="this one could not be written; see the log"):
        all_of_them.check()


def test_the_report_reaches_all_and_forgives_nothing():
    heard, broken = Heard(), Heard(broken=True)
    all_of_them = recorders_of(broken, heard)
    all_of_them.end(progress_of(make_row(1)))
    broken.broken = False
    all_of_them.report("a report")
    all_of_them.close("finished")
    assert heard.events == ["end", "report", "finished"]
    with pytest.raises(RunError, match="this one could not be written"):
        all_of_them.check()


def test_one_that_works_again_is_forgiven():
    broken = Heard(broken=True)
    all_of_them = recorders_of(broken)
    all_of_them.row(progress_of(make_row(1)))
    broken.broken = False
    all_of_them.end(progress_of(make_row(1)))
    all_of_them.check()


def test_only_the_first_rank_writes():
    heard = Heard()
    Recorders([heard], Lines(), lambda work: None).row(progress_of(make_row(1)))
    assert heard.events == []


def test_the_history_has_a_row_an_epoch_and_blanks(tmp_path):
    history = HistoryCsv(Lines(tmp_path / "run.log"))
    progress = progress_of(make_row(1))
    history.start(progress)  # of a resumed run
    progress.history.append(make_row(2, test_loss=None))
    history.row(progress)
    history.end(progress)
    with (tmp_path / "run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["test_loss"] for row in rows] == ["0.5", ""]


def test_without_an_epoch_there_is_no_history(tmp_path):
    history = HistoryCsv(Lines(tmp_path / "run.log"))
    history.start(Progress())
    history.end(Progress())
    assert list(tmp_path.iterdir()) == []


def epochs_in(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def test_a_full_disk_or_a_file_moved_away_costs_no_row(tmp_path, monkeypatch):
    history, progress = HistoryCsv(Lines(tmp_path / "run.log")), progress_of(make_row(1))
    history.row(progress)

    def full(handle):
        raise OSError(28, "No space left on device")

    progress.history.append(make_row(2))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        history.row(progress)
    assert epochs_in(tmp_path / "run.csv") == ["1"]
    (tmp_path / "run.csv").rename(tmp_path / "moved.csv")
    progress.history.append(make_row(3))
    history.row(progress)
    assert {path.name for path in tmp_path.iterdir()} == {"moved.csv", "run.csv"}
    assert epochs_in(tmp_path / "run.csv") == ["1", "2", "3"]


def test_a_run_stopped_after_its_end_leaves_the_history_as_it_is(tmp_path):
    history = HistoryCsv(Lines(tmp_path / "run.log"))
    for tell in (history.row, history.end, history.end):
        tell(progress_of(make_row(1)))
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("before", "epoch", "left"), [(0, 1, "0:02:00"), (0, 2, "0:00:16"), (1, 2, "0:00:20")]
)
def test_the_time_left_knows_that_larger_images_take_longer(monkeypatch, before, epoch, left):
    """Epochs cost 1, 4, 4, 4; ten seconds went by for the first 1 or 5, or for 4."""
    clock = iter((100.0, 110.0))
    monkeypatch.setattr(recorders.time, "perf_counter", lambda: next(clock))
    log = Lines()
    line = LogLine(log, Settings.from_flags(epochs=4), (0, 1, 4, 4, 4).__getitem__, lambda: 0.0)
    line.start(progress_of(*(make_row(n) for n in range(1, before + 1))))
    line.row(progress_of(make_row(epoch)))
    assert re.search(r"left (.*)", log.lines[-1])[1] == left


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "epoch 2/250 | lr 0.5 | train 0.5000 50.00% | test 0.5000 50.00% | raw 50.00%, "),
        ({"test_loss": None, "ema_accuracy": None}, "train 0.5000 50.00% | 0.5 s | "),
        ({"val_loss": 0.25, "val_accuracy": 0.75}, "| val 0.2500 75.00% | test"),
        ({"skipped_steps": 3}, "| 3 steps skipped by the fp16 scaler"),
    ],
    ids=str,
)
def test_a_line_says_what_was_measured(changes, words):
    log = Lines()
    line = LogLine(log, Settings(), lambda epoch: 1, lambda: 0.0)
    line.start(progress_of(make_row(1)))
    line.row(progress_of(make_row(1), make_row(2, **changes)))
    assert words in log.lines[0]


def test_waiting_for_data_is_told_once():
    log = Lines()
    line = LogLine(log, Settings(), lambda epoch: 1, lambda: 0.0)
    line.start(Progress())
    for epoch in (1, 2):
        line.row(progress_of(make_row(epoch, data_wait=0.2)))
    assert sum("waiting for data" in text for text in log.lines) == 1


def test_the_compilation_is_told_after_the_first_epoch():
    log = Lines()
    line = LogLine(log, Settings.from_flags(compile=True), lambda epoch: 1, lambda: 31.4)
    line.start(Progress())
    for epoch in (1, 2):
        line.row(progress_of(make_row(epoch)))
    said = [text for text in log.lines if "compiled" in text]
    assert said == ["compiled in the first step, which took 31 s"]


def test_curves_are_drawn_now_and_then_and_at_the_end():
    drawn = []
    curves = Curves(
        Settings.from_flags(epochs=6, plot_freq=2),
        Path(),
        lambda progress: drawn.append(progress.epoch),
    )
    for epoch in range(1, 7):
        curves.row(progress_of(make_row(epoch)))
    assert drawn == [2, 4]
    curves.end(progress_of(make_row(6)))
    assert drawn == [2, 4, 6]
    curves.end(Progress())
    assert len(drawn) == 3


def test_a_run_with_a_real_log(tmp_path):
    with RunLog() as log:
        log.open(tmp_path)
        all_of_them = recorders_of(HistoryCsv(log), log=log)
        progress = progress_of(make_row(1))
        all_of_them.row(progress)
        all_of_them.end(progress)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".log"]
