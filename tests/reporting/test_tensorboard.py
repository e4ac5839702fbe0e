"""Event files are read back with TensorBoard's own reader."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import QUICK
from support.snapshots import make_row
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io import gfile
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from cifarnet.checkpoints.history import COLUMNS, Progress
from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.core.log import RunLog
from cifarnet.reporting.metrics import build_report
from cifarnet.reporting.recorders import Recorders
from cifarnet.reporting.tensorboard import TensorBoard
from cifarnet.settings import FLAGS, Settings

PICTURE = np.arange(3 * 8 * 6, dtype=np.uint8).reshape(8, 6, 3)


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def curve(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(f"history/{name}")]


def pixels(events: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = events.Images(tag)
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def hparams(events: EventAccumulator) -> HParamsPluginData:
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    return HParamsPluginData.FromString(content).session_start_info.hparams


def some_report():
    logits, labels = torch.eye(4)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 3])
    about = {"dataset": "d", "snapshot": "s", "weights": "raw", "selected_by": "", "sha256": ""}
    return build_report(logits, labels, tuple("abcd"), epoch=2, **about)


def recorder(log: RunLog, settings: Settings | None = None) -> TensorBoard:
    return TensorBoard(log, settings or Settings(), lambda: PICTURE, lambda report: PICTURE[::-1])


@pytest.fixture
def log(tmp_path):
    with RunLog() as log:
        log.open(tmp_path)
        yield log


@pytest.mark.parametrize("fails", [False, True])
def test_all_columns_pictures_and_figures(log, fails):
    """They stay where another part of the report fails: the recorders then end once more."""
    progress, board = Progress(), recorder(log, Settings.from_flags(lr=0.25))
    board.start(progress)
    for epoch in (1, 2):
        progress.history.append(make_row(epoch, test_top5=None, train_loss=1 / epoch))
        board.row(progress)
    board.end(progress)
    report = some_report()
    board.report(report)
    if fails:
        board.end(progress)
    events = read(log.path.with_suffix(""))
    scalars = {f"history/{name}" for name in COLUMNS}
    scalars -= {f"history/{name}" for name in ("epoch", "val_loss", "val_accuracy", "test_top5")}
    final = {f"final/{name}" for name in ("top1", "top3", "top5", "loss", "macro_f1")}
    assert set(events.Tags()["scalars"]) == scalars | final
    assert curve(events, "train_loss") == [(1, 1.0), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("final/top1")] == [(2, 0.75)]
    assert (pixels(events, "augmented") == PICTURE).all()
    assert (pixels(events, "confusion_matrix") == PICTURE[::-1]).all()
    shown = hparams(events)
    assert shown["lr"].number_value == 0.25 and shown["schedule"].string_value == "cosine"
    places = {name for name, spec in FLAGS.items() if spec.metadata["on_resume"] == "any"}
    assert not places & set(shown)


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_a_resumed_run_leaves_one_curve(tmp_path, kept):
    """It went on after epoch 4, or after an earlier one, or without events of the first ones."""
    (tmp_path / "elsewhere").mkdir()
    rows = [make_row(epoch, train_loss=float(epoch)) for epoch in range(1, 5)]
    again = [make_row(epoch, train_loss=epoch + 0.5) for epoch in range(kept + 1, 7)]
    with RunLog() as log:
        log.open(tmp_path)
        progress, board = Progress(), recorder(log)
        board.start(progress)
        for row in rows:
            progress.history.append(row)
            board.row(progress)
    folder = log.path.with_suffix("")
    other = Progress()
    with RunLog() as log:
        log.open(tmp_path)
        recorder(log).start(other)  # another run beside it
        resumed, board = Progress(progress.run_id, rows[:kept]), recorder(log)
        log.path = log.path.with_name("later.log")
        board.start(resumed)
        for row in again:
            resumed.history.append(row)
            board.row(resumed)
        board.end(resumed)
        board.report(some_report())
    assert not (tmp_path / "later").exists()
    expected = [(row.epoch, row.train_loss) for row in (*rows[:kept], *again)]
    assert curve(read(folder), "train_loss") == expected
    times = [event.wall_time for event in read(folder).Scalars("history/train_loss")]
    assert times == sorted(times)


def test_a_full_disk_does_not_end_the_run(log, monkeypatch, capfd):
    full = False
    write = gfile.LocalFileSystem._write

    def write_unless_full(*arguments):
        if full:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(gfile.LocalFileSystem, "_write", write_unless_full)
    progress, board = Progress(), recorder(log)
    all_of_them = Recorders([board], log, lambda work: work())
    all_of_them.start(progress)
    for epoch in range(1, 6):
        full = epoch in (2, 3)
        progress.history.append(make_row(epoch, train_loss=float(epoch)))
        all_of_them.row(progress)
    all_of_them.check()
    told = capfd.readouterr()
    warning = "the events for TensorBoard could not be written (No space left on device)"
    assert told.out.count(warning) == 2
    assert told.err == ""  # no traceback of the thread that writes
    assert [step for step, _ in curve(read(log.path.with_suffix("")), "train_loss")] == [
        *range(1, 6)
    ]


def test_a_run_and_its_continuation(command):
    assert command("main", *QUICK, "--run_dir", "plain").code == 0
    watched = (*QUICK, "--run_dir", "watched", "--tensorboard")
    assert command("main", *watched, "--epochs", "2").code == 0
    plain, seen = (
        read_snapshot(Path(run, "snapshots_complete/last.pth")).model.weights
        for run in ("plain", "watched")
    )
    assert all(torch.equal(plain[name], seen[name]) for name in plain)  # only watched
    done = command("main", *watched, "--epochs", "3", "--resume", "auto")
    assert (done.code, done.err) == (0, "")
    first, last = sorted(Path("watched/log").glob("*.log"))
    (folder,) = (path for path in first.parent.iterdir() if path.is_dir())
    assert folder.name == first.stem
    events = read(folder)
    with last.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("lr", "train_loss", "test_accuracy", "images_per_second"):
        expected = [(int(row["epoch"]), pytest.approx(float(row[name]))) for row in rows]
        assert curve(events, name) == expected
    assert len(rows) == 3
    report = json.loads(Path("watched/plots_complete/metrics.json").read_text())
    assert events.Scalars("final/top1")[-1].value == pytest.approx(report["top1"])
    assert hparams(events)["epochs"].number_value == 3
    assert pixels(events, "augmented").shape == (8 * 36, 9 * 36, 3)
    assert pixels(events, "confusion_matrix").shape[1] == 960


def test_without_the_package_there_is_one_line(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = command("main", *QUICK, "--tensorboard")
    assert done.code == 2
    assert done.err.startswith("error: --tensorboard needs the package tensorboard")
    assert "requirements-extra.txt" in done.err and done.err.count("\n") == 1
    assert not list(Path().iterdir())  # nothing was begun
