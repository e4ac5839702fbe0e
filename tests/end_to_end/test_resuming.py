"""Runs that go on from a snapshot: which one, with which flags, and what happens to the others."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image
from support.commands import QUICK, from_folder
from support.outputs import best_epoch, epoch_of, figures, rows_of, settings_of

from cifarnet.checkpoints.snapshots import pack, read_snapshot


def test_resuming_by_path_elsewhere_brings_the_best_along(command):
    flags = (*QUICK, "--save_best")
    assert command("main", *flags, "--epochs", "3", "--snapshot_dir", "a").code == 0
    best = best_epoch("last.pth", "a")
    done = command("main", *flags, "--epochs", "4", "--snapshot_dir", "b", "--resume", "a/last.pth")
    assert done.code == 0
    assert "changed: " in done.out
    assert "epochs 3 -> 4" in done.out
    assert (Path("b") / "best_model.pth").exists()
    assert epoch_of("best_model.pth", "b") in (best, 4)
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
    best = best_epoch("last.pth")
    other = next(epoch for epoch in (1, 2, 3) if epoch != best)
    stale = (snapshots / f"snapshot_epoch_000{other}.pth").read_bytes()
    (snapshots / "best_model.pth").write_bytes(stale)

    done = command("main", *flags, "--resume", "auto", "--save_best")
    assert done.code == 0
    assert figures()["best"]["epoch"] == best  # found in the numbered snapshot
    (snapshots / f"snapshot_epoch_000{best}.pth").unlink()
    done = command("main", *flags, "--resume", "auto", "--select", "best")
    assert done.code == (0 if best == 3 else 2), done.err

    done = command("main", *QUICK, "--epochs", "4", "--resume", "auto", "--save_best")
    assert done.code == 0
    kept = [path.read_bytes() for path in snapshots.glob("before_*/best_model.pth")]
    assert kept == [stale]


def report() -> dict:
    """The figures of the report and the id of their run, without the command that wrote them."""
    found = figures()
    return found | {"run": found["run"]["id"]}


def contents(directory: str = "snapshots_complete") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def test_new_flags_do_not_change_the_report_of_a_finished_run(command):
    run = (*QUICK, "--epochs", "1")
    assert command("main", *run).code == 0
    first = report()
    others = ("--limit_train", "0", "--resume_override")
    assert command("main", *run, "--resume", "auto", *others).code == 0
    assert report() == first


def test_a_finished_run_is_only_evaluated(command):
    assert command("main", *QUICK).code == 0
    before = contents()
    first = report()
    Path("plots_complete/metrics.json").unlink()
    done = command("main", *QUICK, "--resume", "auto")
    assert done.code == 0
    assert "evaluating only" in done.out
    assert contents() == before
    assert report() == first
    assert len(rows_of(Path("log"))) == 2


def test_auto_without_a_snapshot_starts_anew_and_passes_over_broken_ones(command):
    Path("snapshots_complete").mkdir()
    Path("snapshots_complete/last.pth").write_text("broken")
    done = command("main", *QUICK, "--epochs", "1", "--resume", "auto")
    assert done.code == 0
    assert "passed over: " in done.out
    assert "starting anew" in done.out
    kept = list(Path("snapshots_complete").glob("before_*/last.pth"))
    assert [path.read_text() for path in kept] == ["broken"]


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


def test_a_validated_run_goes_on_without_validation(command):
    flags = (*QUICK, "--limit_train", "100", "--save_best")
    assert command("main", *flags, "--epochs", "1", "--val_fraction", "0.4").code == 0
    done = command("main", *flags, "--epochs", "2", "--resume", "auto", "--resume_override")
    assert done.code == 0, done.err
    assert epoch_of("best_model.pth") == 2  # the only one measured on test images


def test_images_held_back_after_they_were_trained_on_are_warned_of(command):
    flags = (*QUICK, "--limit_train", "100", "--resume", "auto", "--val_fraction")
    warning = "warning: this run has trained on images that are now held back for validation"
    for epochs, fraction, warned in (("1", "0", False), ("2", "0.4", True), ("3", "0.4", False)):
        done = command("main", *flags, fraction, "--epochs", epochs, "--resume_override")
        assert (done.code, warning in done.out) == (0, warned)


def test_resuming_another_data_sets_snapshot_is_refused_and_loses_nothing(command, tree):
    assert command("main", *QUICK, "--epochs", "1").code == 0
    before = contents()
    flags = (*QUICK, *from_folder(tree, 4), "--resume", "auto")
    done = command("main", *flags)
    assert done.code == 2
    assert done.err.startswith("error: dataset digits -> folder, ")
    done = command("main", *flags, "--resume_override")
    assert done.code == 2
    assert done.err.startswith(
        "error: --resume snapshots_complete/last.pth: class names differ: the network knows 10 "
        "(0, 1, 2, ...); the data set has 2 (bar, disc); "
    )
    assert contents() == before
    assert len(list(Path("log").glob("*.log"))) == 1  # the first run's


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--lr", "0.2", "--seed", "7"), "lr 0.1 -> 0.2, seed 42 -> 7"),
        (("--epochs", "2"), "epochs 3 -> 2"),
        (("--optimizer", "adamw"), "optimizer sgd -> adamw"),
        (("--limit_test", "30"), "limit_test 40 -> 30"),
    ],
)
def test_flags_that_alter_the_result_are_refused_unless_told(command, flags, named):
    run = (*QUICK, "--epochs", "3", "--snapshot_freq", "2")
    assert command("main", *run).code == 0
    Path("snapshots_complete/last.pth").unlink()
    before = contents()
    done = command("main", *run, *flags, "--resume", "auto")
    assert done.code == 2
    assert done.err.startswith(
        f"error: {named} would alter the result of the run in snapshots_complete/snapshot_epoch"
    )
    assert done.err.count("\n") == 1
    assert contents() == before
    done = command("main", *run, *flags, "--resume", "auto", "--resume_override")
    assert done.code == 0
    assert f"changed: {named}" in done.out
    assert ("momenta start anew" in done.out) == ("optimizer" in named)


def test_another_device_is_told_and_so_are_flags_without_effect(command):
    assert command("main", *QUICK).code == 0
    path = Path("snapshots_complete/last.pth")
    former = read_snapshot(path)
    origin = dataclasses.replace(former.model.origin, computed_on="cuda in bfloat16")
    model = dataclasses.replace(former.model, origin=origin)
    path.write_bytes(pack(dataclasses.replace(former, model=model)))
    flags = (*QUICK, "--epochs", "3", "--muon_lr", "0.2")
    done = command("main", *flags, "--resume", "auto", "--resume_override")
    assert (done.code, done.err) == (0, "")
    differs = "that run computed on cuda in bfloat16, this one on cpu in float32: rounding differs"
    assert differs in done.out
    assert "warning: --muon_lr has no effect without --optimizer muon" in done.out


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
    assert (
        "--epochs 4 stretches the schedule and --image_sizes: the learning rate was 1e-06 at the "
        "end of epoch 2 and goes on at 0.0"
    ) in done.out
