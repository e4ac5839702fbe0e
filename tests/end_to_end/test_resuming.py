"""Runs that go on from a snapshot: which one, with which flags, and what happens to the others."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.commands import QUICK, assert_one_line, from_folder, without_privileges
from support.outputs import (
    best_epoch,
    epoch_of,
    figures,
    log_text,
    rows_of,
    settings_of,
    snapshot,
)

from cifarnet.checkpoints.snapshots import pack, read_snapshot, write_snapshot

ROOT = Path(__file__).parents[2]


def rank_epochs(directory: Path, best: int) -> None:
    """Gives the epoch `best` the highest accuracy in the histories of all snapshots."""
    for path in directory.glob("*.pth"):
        content = read_snapshot(path)
        state = content.state
        rows = [replace(row, test_accuracy=0.9 + (row.epoch == best) / 20) for row in state.history]
        write_snapshot(pack(replace(content, state=replace(state, history=rows))), path)


def test_resuming_by_path_elsewhere_brings_the_best_along(command):
    flags = (*QUICK, "--save_best")
    assert command("main", *flags, "--epochs", "3", "--snapshot_dir", "a").code == 0
    rank_epochs(Path("a"), best=1)  # better than the fourth epoch
    done = command("main", *flags, "--epochs", "4", "--snapshot_dir", "b", "--resume", "a/last.pth")
    assert done.code == 0
    assert "changed: " in done.out
    assert "epochs 3 -> 4" in done.out
    assert (Path("b") / "best_model.pth").exists()
    assert epoch_of("best_model.pth", "b") == best_epoch("last.pth", "b")
    assert epoch_of("last.pth", "a") == 3  # untouched


def test_the_same_command_with_auto_goes_on_with_the_default_batch(command):
    """Which was lowered to the 60 training images."""
    flags = [word for word in QUICK if word not in ("--batch_size", "20")]
    for epochs in ("1", "2"):
        done = command("main", *flags, "--epochs", epochs, "--resume", "auto")
        assert (done.code, done.err) == (0, "")
    assert "resuming after epoch 1 " in done.out
    assert settings_of()["batch_size"] == 60


def test_a_best_snapshot_that_is_not_the_best_is_kept_and_not_believed(command):
    flags = (*QUICK, "--epochs", "3")
    assert command("main", *flags, "--save_best").code == 0
    snapshots = Path("snapshots_complete")
    rank_epochs(snapshots, best=1)
    stale = (snapshots / "snapshot_epoch_0002.pth").read_bytes()
    (snapshots / "best_model.pth").write_bytes(stale)

    done = command("main", *flags, "--resume", "auto", "--save_best")
    assert done.code == 0
    assert figures()["best"]["epoch"] == 1  # found in the numbered snapshot
    (snapshots / "snapshot_epoch_0001.pth").unlink()
    done = command("main", *flags, "--resume", "auto", "--select", "best")
    assert_one_line(done, 2, "--select best: no snapshot of the best epoch 1 is beside")

    done = command("main", *QUICK, "--epochs", "4", "--resume", "auto", "--save_best")
    assert done.code == 0
    kept = [path.read_bytes() for path in snapshots.glob("before_*/best_model.pth")]
    assert kept == [stale]


def report() -> dict:
    """The figures of the report and the id of their run, without the command that wrote them."""
    return figures() | {"run": figures()["run"]["id"]}


def contents(directory: str = "snapshots_complete") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def test_a_finished_run_is_only_evaluated_whatever_the_flags(command):
    assert command("main", *QUICK).code == 0
    before, first = contents(), report()
    for changes in ((), ("--limit_train", "0", "--resume_override")):
        Path("plots_complete/metrics.json").unlink()
        done = command("main", *QUICK, "--resume", "auto", *changes)
        assert (done.code, "evaluating only" in done.out) == (0, True)
        assert (contents(), report()) == (before, first)
        assert len(rows_of(Path("log"))) == 2


def test_auto_without_a_snapshot_starts_anew_and_passes_over_broken_ones(command):
    Path("snapshots_complete").mkdir()
    Path("snapshots_complete/last.pth").write_text("broken")
    done = command("main", *QUICK, "--epochs", "1", "--resume", "auto")
    assert done.code == 0
    assert "skipped: " in done.out
    assert "starting a new run" in done.out
    kept = list(Path("snapshots_complete").glob("before_*/last.pth"))
    assert [path.read_text() for path in kept] == ["broken"]


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *itertools.product(
            ("broken link", "link to itself", "folder"), ("last.pth", "snapshot_epoch_0009.pth")
        ),
        ("another user's", "last.pth"),
    ],
)
def test_a_snapshot_that_cannot_be_read_is_not_missing(tmp_path, command, trained, how, name):
    """Even though an older one is intact."""
    Path("snapshots_complete").mkdir()
    Path("snapshots_complete/snapshot_epoch_0004.pth").write_bytes(trained.snapshot.read_bytes())
    path = tmp_path / "snapshots_complete" / name
    if how == "folder":
        path.mkdir()
    elif how == "another user's":
        path.write_bytes(trained.snapshot.read_bytes())
        path.chmod(0)
    else:
        path.symlink_to(path if how == "link to itself" else "/missing/disk/last.pth")
    flags = (*QUICK, "--resume", "auto", "--snapshot_dir", path.parent)
    if how == "another user's":
        done = without_privileges(ROOT / "main.py", *flags)
        code, err = done.returncode, done.stderr
    else:
        code, _, err = command("main", *flags)
    assert (code, err.count("\n")) == (2, 1), err
    assert f"{name} cannot be read (" in err
    assert {each.name for each in path.parent.iterdir()} == {name, "snapshot_epoch_0004.pth"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_lock_of_another_user_is_refused_with_its_name_and_owner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = tmp_path / ".snapshot_dir.lock"
    lock.touch(0o600)
    os.chown(lock, 12345, -1)
    done = without_privileges(ROOT / "main.py", *QUICK, "--snapshot_dir", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{lock}: Permission denied); user 12345 may remove that file" in done.stderr
    assert lock.exists()


def test_a_new_run_keeps_an_older_ones_snapshots(command):
    assert command("main", *QUICK).code == 0
    before = contents()
    assert set(before) == {"last.pth", "snapshot_epoch_0001.pth", "snapshot_epoch_0002.pth"}
    done = command("main", *QUICK, "--seed", "1", "--epochs", "1")
    assert "moved the snapshots of an earlier run to " in done.out
    moved = list(Path("snapshots_complete").glob("before_*"))
    assert len(moved) == 1
    assert contents(moved[0]) == before
    assert epoch_of("last.pth") == 1


def test_images_held_out_after_they_were_trained_on_are_warned_of(command):
    flags = (*QUICK, "--limit_train", "100", "--resume", "auto", "--val_fraction")
    warning = "warning: this run may have trained on images that are now validation images"
    for epochs, fraction, warned in (("1", "0", False), ("2", "0.4", True), ("3", "0.4", False)):
        done = command("main", *flags, fraction, "--epochs", epochs, "--resume_override")
        assert (done.code, warning in done.out) == (0, warned)
        assert snapshot("last.pth")["comparable_after"] == min(int(epochs) - 1, 1)


def test_after_test_images_have_changed_the_best_epoch_starts_anew(command, tree):
    flags = (*QUICK, *from_folder(tree, 4), "--resume", "auto", "--epochs")
    assert command("main", *flags, "1").code == 0
    image = tree / "test" / "bar" / "000.png"
    image.write_bytes(image.with_name("001.png").read_bytes())
    done = command("main", *flags, "2")
    assert (done.code, "the held-out images have changed: the best" in done.out) == (0, True)
    assert snapshot("last.pth")["comparable_after"] == 1


def test_resuming_another_data_sets_snapshot_is_refused_and_loses_nothing(command, tree):
    assert command("main", *QUICK, "--epochs", "1").code == 0
    before = contents()
    flags = (*QUICK, *from_folder(tree, 4), "--resume", "auto")
    done = command("main", *flags)
    assert done.code == 2
    assert done.err.startswith("error: dataset digits -> folder, ")
    done = command("main", *flags, "--resume_override")
    assert done.code == 2
    assert "--resume snapshots_complete/last.pth: class names differ" in done.err
    assert contents() == before
    assert len(list(Path("log").glob("*.log"))) == 1  # the first run's


def test_flags_that_alter_the_result_are_refused_unless_told(command):
    run = (*QUICK, "--epochs", "3", "--snapshot_freq", "2")
    assert command("main", *run).code == 0
    Path("snapshots_complete/last.pth").unlink()
    before, changed = contents(), (*run, "--optimizer", "adamw", "--resume", "auto")
    done = command("main", *changed)
    assert (done.code, done.err.count("\n"), contents()) == (2, 1, before)
    assert done.err.startswith("error: optimizer sgd -> adamw would alter the result of the run in")
    done = command("main", *changed, "--resume_override")
    assert done.code == 0
    assert "changed: optimizer sgd -> adamw" in done.out
    assert "optimizer state is reset" in done.out


def test_other_images_under_the_same_flags_are_noticed(command, tree):
    flags = (*QUICK, *from_folder(tree, 4), "--epochs", "1")
    assert command("main", *flags).code == 0
    Image.new("RGB", (32, 32), "red").save(tree / "train" / "bar" / "000.png")
    done = command("main", *flags, "--resume", "auto")
    assert done.code == 2
    assert "the training images" in done.err


def test_more_epochs_go_on_and_say_that_the_schedule_stretches(command):
    run = (*QUICK, "--image_sizes", "8,16")
    assert command("main", *run, "--epochs", "2").code == 0
    done = command("main", *run, "--epochs", "4", "--resume", "auto")
    assert (done.code, done.err) == (0, "")
    rates = [float(row["lr"]) for row in rows_of(Path("log"))]
    assert rates[1] == 1e-6 < rates[2]
    assert "--epochs 4 stretches the schedule and --image_sizes" in done.out


def test_flags_are_checked_together_with_the_kept_ones(command):
    """--evaluate ema alone contradicts the defaults, but not the run that it continues."""
    assert command("main", *QUICK, "--epochs", "1", "--ema_decay", "0.9").code == 0
    resume = ("--resume", "snapshots_complete/last.pth")
    done = command("main", *resume, "--evaluate", "ema", "--epochs", "2", "--resume_override")
    assert (done.code, settings_of()["evaluate"], settings_of()["ema_decay"]) == (0, "ema", 0.9)
    assert "batch_size=20" in done.out  # the kept one
    done = command("main", *resume, "--ema_decay", "0", "--evaluate", "ema", "--resume_override")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--evaluate ema needs averaged weights" in done.err


def test_a_batch_size_that_was_fitted_is_not_shown_as_a_setting(command):
    flags = [word for word in QUICK if word not in ("--batch_size", "20")]
    assert command("main", *flags, "--epochs", "1").code == 0
    lines = log_text().splitlines()
    settings, defaults = (
        next(x for x in lines if word in x) for word in (" settings: ", " defaults: ")
    )
    assert "batch_size" not in settings
    assert "batch_size=60" in defaults
