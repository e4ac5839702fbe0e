from pathlib import Path
from types import SimpleNamespace

import pytest
from support.snapshots import make_row, make_snapshot

from cifarnet.checkpoints.history import Progress
from cifarnet.checkpoints.paths import numbered
from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.core.errors import RunError
from cifarnet.reporting import recorders
from cifarnet.reporting.recorders import Recorders, Snapshots
from cifarnet.settings import Settings


def progress_of(*rows) -> Progress:
    return Progress(history=list(rows))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_snapshots_are_kept_until_the_disk_takes_them(tmp_path, monkeypatch):
    settings = Settings.from_flags(save_best=True, snapshot_freq=2)
    now = Progress()
    kept = Snapshots(tmp_path, settings, lambda: make_snapshot(now.epoch))
    all_of_them = Recorders([kept], SimpleNamespace(line=print), lambda work: work())
    write, full = recorders.write_snapshot, True

    def write_unless_full(content, path):
        if full:
            raise OSError(28, "No space left on device")
        write(content, path)

    monkeypatch.setattr(recorders, "write_snapshot", write_unless_full)
    for epoch, accuracy in ((1, 0.1), (2, 0.9)):
        now.history.append(make_row(epoch, test_accuracy=accuracy))
        all_of_them.row(now)
    assert names(tmp_path) == []
    with pytest.raises(
        RunError, match=r"best_model\.pth, last\.pth, snapshot_epoch_0002\.pth could not be written"
    ):
        all_of_them.check()
    full = False
    now.history.append(make_row(3, test_accuracy=0.2))
    all_of_them.row(now)
    all_of_them.check()
    assert names(tmp_path) == ["best_model.pth", "last.pth", "snapshot_epoch_0002.pth"]
    epochs = [read_snapshot(tmp_path / name).epoch for name in names(tmp_path)]
    assert epochs == [2, 3, 2]  # each as it would have been


def test_a_snapshot_that_cannot_be_made_fails_the_run(tmp_path):
    """As where memory runs out. At the end it is not made: the weights may be mid-epoch."""
    kept = Snapshots(tmp_path, Settings(), iter([make_snapshot(1)]).__next__)
    kept.row(progress_of(make_row(1)))
    for event, error in ((kept.row, StopIteration), (kept.end, RunError)):
        with pytest.raises(error):
            event(progress_of(make_row(1), make_row(2)))
        assert kept.failure == f"the snapshot of the last epoch could not be made for {tmp_path}"
    assert read_snapshot(tmp_path / "last.pth").epoch == 1


def test_a_run_that_trains_no_epoch_removes_no_snapshot(tmp_path):
    """They may be those of another run."""
    files = [numbered(tmp_path, epoch) for epoch in (1, 2, 3)]
    [path.touch() for path in files]
    settings = Settings.from_flags(keep_snapshots=1, snapshot_freq=1)
    kept = Snapshots(tmp_path, settings, make_snapshot)
    kept.end(progress_of())
    assert all(path.exists() for path in files)
    kept.row(progress_of(make_row(4)))
    assert names(tmp_path) == ["last.pth", "snapshot_epoch_0004.pth"]


def test_the_best_is_written_before_the_last(tmp_path, monkeypatch):
    """After a crash in between, the resumed run repeats the epoch."""
    written = []
    monkeypatch.setattr(
        recorders, "write_snapshot", lambda content, path: written.append(path.name)
    )
    kept = Snapshots(tmp_path, Settings.from_flags(save_best=True, snapshot_freq=1), make_snapshot)
    kept.row(progress_of(make_row(1)))
    assert written[-1] == "last.pth"
    assert sorted(written) == ["best_model.pth", "last.pth", "snapshot_epoch_0001.pth"]
