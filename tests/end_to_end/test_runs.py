"""Whole runs, through the command line, as a user starts them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import DRAWN, QUICK, from_folder
from support.outputs import (
    assert_same_state,
    best_epoch,
    epoch_of,
    figures,
    log_text,
    rows_of,
    settings_of,
    snapshot,
)
from support.pictures import draw_tree

from data import EvalBatches

ROOT = Path(__file__).parent.parent.parent
CURVES = {"training_curves.png", "learning_rate_schedule.png"}
FIGURES = {"confusion_matrix.png", "class_metrics.png"}
NUMBERS = {"metrics.json", "classification_report.txt", "predictions.csv"}


def names_in(directory: str | Path) -> set[str]:
    return {path.name for path in Path(directory).iterdir()}


def test_what_a_run_leaves_behind(command):
    done = command("main", *DRAWN, "--save_best", "--epochs", "3", "--plot_freq", "1")
    assert (done.code, done.err) == (0, "")
    assert names_in("plots_complete") == CURVES | FIGURES | NUMBERS | {"report.html"}
    numbered = {f"snapshot_epoch_000{epoch}.pth" for epoch in (1, 2, 3)}
    assert names_in("snapshots_complete") == {"last.pth", "best_model.pth"} | numbered

    rows = rows_of(Path("log"))
    assert list(rows[0])[:16] == [
        *("epoch", "lr", "train_loss", "train_accuracy"),
        *("val_loss", "val_accuracy", "test_loss", "test_accuracy", "test_top3", "test_top5"),
        *("raw_accuracy", "ema_accuracy"),
        *("seconds", "train_seconds", "images_per_second", "data_wait"),
    ]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["lr"]) == 1e-6
    assert {row["val_loss"] for row in rows} == {""}
    for row in rows:
        shares = [float(row[f"test_{name}"]) for name in ("accuracy", "top3", "top5")]
        assert 0 <= shares[0] <= shares[1] <= shares[2] <= 1
        assert 0 < float(row["data_wait"]) < 1

    text = log_text()
    for part in (
        *("settings: ", "torch ", "device: cpu", "60 training", "Total params: 174,762"),
        *("epoch 3/3", "img/s"),
    ):
        assert part in text
    assert "\r" not in text
    assert "%|" not in text

    report, last = figures(), snapshot("last.pth")
    assert report["top1"] == report["last"]["top1"] == float(rows[-1]["test_accuracy"])
    assert report["loss"] == pytest.approx(float(rows[-1]["test_loss"]))
    highest = max(float(row["test_accuracy"]) for row in rows)
    assert report["best"]["top1"] == highest
    assert (report["images"], report["epoch"], report["dataset"]) == (40, 3, "digits")
    assert np.sum(report["confusion_matrix"]) == 40
    text = Path("plots_complete/classification_report.txt").read_text()
    assert "the test set was evaluated during the run" in text
    assert last["origin"]["epoch"] == 3
    assert [row["epoch"] for row in last["history"]] == [1, 2, 3]
    assert epoch_of("best_model.pth") == best_epoch("last.pth")


def test_without_plots_only_the_numbers(command):
    assert command("main", *QUICK, "--epochs", "1").code == 0
    assert names_in("plots_complete") == NUMBERS


def test_everything_switched_on_and_flags_win(command):
    assert command("run_complete_training", *QUICK, "--epochs", "1", "--plot_evaluation").code == 0
    first_line = log_text().splitlines()[0]  # the command as given, without the presets
    assert " python run_complete_training.py --dataset" in first_line
    assert "--save_best" not in first_line
    settings = settings_of()
    assert settings["amp"] and settings["save_best"] and settings["plot_evaluation"]
    assert settings["plot_training"] is False
    assert Path("snapshots_complete/best_model.pth").exists()


def test_a_recipe_wins_over_the_presets(command, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("amp = false\n")
    flags = [*QUICK, "--epochs", "1", "--recipe", recipe, "--no-save_best"]
    assert command("run_complete_training", *flags).code == 0
    settings = settings_of()
    assert (settings["amp"], settings["save_best"]) == (False, False)


@pytest.mark.parametrize("amp", ["--amp", "--no-amp"])
@pytest.mark.parametrize("engine", ["albumentations", "batched"])
def test_a_resumed_run_equals_an_uninterrupted_one(command, amp, engine):
    flags = (*QUICK, "--epochs", "4", "--save_best", "--augment_engine", engine, amp)
    in_parts = (*flags, "--snapshot_dir", "parts", "--log_dir", "b")
    assert command("main", *flags, "--snapshot_dir", "whole", "--log_dir", "a").code == 0
    assert command("main", *in_parts, "--num_workers", "2").code == 0
    numbered = ("snapshot_epoch_0003.pth", "snapshot_epoch_0004.pth")
    for name in ("last.pth", "best_model.pth", *numbered):
        (Path("parts") / name).unlink(missing_ok=True)
    done = command("main", *in_parts, "--resume", "auto")
    assert done.code == 0
    assert "resuming after epoch 2" in done.out
    whole, parts = snapshot("last.pth", "whole"), snapshot("last.pth", "parts")
    for key in ("weights", "optimizer", "scheduler", "scaler", "history", "random_state"):
        assert_same_state(whole[key], parts[key], key)
    assert [row["epoch"] for row in rows_of(Path("b"))] == ["1", "2", "3", "4"]


RECIPE = """
epochs = 3
optimizer = "muon"
schedule = "linear"
image_sizes = "16,24,32"
label_smoothing = 0.1
decay_norms = false
ema_decay = 0.5
evaluate = "ema"
eval_freq = 0
batch_size = 1
"""


def test_a_recipe_with_every_technique_is_kept_resumed_and_reported(command):
    Path("short.toml").write_text(RECIPE)
    flags = (*QUICK, "--epochs", "3", "--recipe", "short.toml")  # the command line wins
    done = command("main", *flags, "--plot_training", "--plot_freq", "1")
    assert (done.code, done.err) == (0, "")
    last, (*early, final) = snapshot("last.pth"), rows_of(Path("log"))
    settings = last["origin"]["settings"]
    assert (settings["optimizer"], settings["ema_decay"]) == ("muon", 0.5)
    assert settings["batch_size"] > 1
    assert [row["test_accuracy"] for row in early] == ["", ""]
    assert final["test_accuracy"] == final["ema_accuracy"] != ""
    assert figures()["top1"] == float(final["ema_accuracy"])
    assert figures()["weights"] == "ema"
    assert figures()["selected_by"] == "last epoch; the test set was evaluated at the end only"
    assert "averaged" in log_text()
    assert "the test set is evaluated at the end only" in log_text()

    evaluate = ("evaluate", "--snapshot", "snapshots_complete/last.pth", "--plot_dir")
    assert command(*evaluate, "again").code == 0
    assert figures(Path("again"))["loss"] == figures()["loss"]
    assert command(*evaluate, "raw", "--evaluate", "raw").code == 0
    assert figures(Path("raw"))["loss"] != figures()["loss"]
    assert figures(Path("raw"))["top1"] == float(final["raw_accuracy"])

    for path in Path("snapshots_complete").glob("*.pth"):
        if path.name != "snapshot_epoch_0001.pth":
            path.unlink()
    assert command("main", *flags, "--resume", "auto").code == 0
    again = snapshot("last.pth")
    for key in ("weights", "averaged", "optimizer", "history"):
        assert_same_state(again[key], last[key], key)


def test_averaged_weights_that_are_not_there_are_an_error(command):
    assert command("main", *QUICK, "--epochs", "1").code == 0
    done = command("evaluate", "--snapshot", "snapshots_complete/last.pth", "--evaluate", "ema")
    assert done.code == 2
    assert "--ema_decay" in done.err


def test_validation_images_select_and_the_test_set_is_seen_once(command):
    validated = ("--limit_train", "200", "--val_fraction", "0.2", "--select", "best")
    assert command("main", *QUICK, *validated).code == 0
    rows = rows_of(Path("log"))
    assert all(row["val_accuracy"] and row["val_loss"] for row in rows)
    assert all(row[name] == "" for row in rows for name in row if name.startswith("test_"))
    report = figures()
    assert report["snapshot"].endswith("best_model.pth")
    assert report["selected_by"] == "best by validation accuracy"
    assert report["top1"] == report["best"]["top1"]
    assert report["epoch"] == best_epoch("last.pth", column="val_accuracy")


def test_a_last_epoch_that_is_the_best_is_reported_as_selected(command):
    flags = (*QUICK, "--epochs", "1")
    assert command("main", *flags).code == 0
    assert command("main", *flags, "--resume", "auto", "--select", "best").code == 0
    report = figures()
    assert Path(report["snapshot"]).name == "last.pth"
    assert report["selected_by"].startswith("best by test accuracy")


def test_processor_time_is_taken_when_the_workers_have_ended(command, monkeypatch):
    times, workers = os.times, []

    def noted():
        workers.append(multiprocessing.active_children())
        return times()

    monkeypatch.setattr(os, "times", noted)
    assert command("main", *QUICK, "--epochs", "1", "--num_workers", "1").code == 0
    assert workers == [[]]


def test_evaluate_repeats_the_runs_report(command, tree):
    assert command("main", *QUICK, *from_folder(tree, 5), "--save_best").code == 0
    of_the_run, last = figures(), ("evaluate", "--snapshot", "snapshots_complete/last.pth")
    done = command(*last, "--plot_dir", "again")
    assert (done.code, done.err) == (0, "")
    again = figures(Path("again"))
    assert {k for k in again if again[k] != of_the_run[k]} == {"last", "best", "run"}
    assert names_in("again") == FIGURES | NUMBERS | {"report.html"}
    best = ("evaluate", "--snapshot", "snapshots_complete/best_model.pth")
    assert command(*best, "--dataset_name", "renamed", "--plot_dir", "renamed").code == 0
    how = figures(Path("renamed"))["selected_by"]
    assert how == "best by test accuracy, evaluated during the run; trained on pictures"
    done = command(*last, "--data_dir", draw_tree(Path("other"), classes=("bar", "star")))
    assert done.code == 2
    assert "the network knows 2 (bar, disc); the data set has 2 (bar, star); " in done.err
    assert command("evaluate").code == 2
    assert command("evaluate", "--snapshot", "missing.pth").code == 2


def test_evaluate_looks_for_other_images_where_they_are(command, trained):
    before = sorted(trained.tree.iterdir())
    other = ("--dataset", "cifar10", "--data_url", "file:///nowhere")
    done = command("evaluate", "--snapshot", trained.snapshot, *other)
    assert (done.code, "cannot get CIFAR-10 into data (" in done.err) == (2, True)
    assert sorted(trained.tree.iterdir()) == before
    # more test images than the 40 that the run was limited to
    more = draw_tree(Path("more"), classes=("bar", "disc", "star"), test=20)
    for flag, source in (
        ("--snapshot", trained.snapshot),
        ("--pretrained", trained.snapshot),
        ("--pretrained", trained.weights),
    ):
        assert command("evaluate", flag, source, "--data_dir", more).code == 0
        assert figures()["images"] == 60
    # a snapshot says where its images are
    assert command("evaluate", "--pretrained", trained.snapshot).code == 0
    assert figures()["images"] == 9


def test_folders_of_strange_names_and_few_classes(command):
    tree = draw_tree(Path("$tree_{"), classes=("$x_{", "<b>&amp;", "ünï 100%"))
    done = command("main", *DRAWN, *from_folder(tree, 7), "--epochs", "1")
    assert (done.code, done.err) == (0, "")
    report = figures()
    assert list(report["per_class"]) == ["$x_{", "<b>&amp;", "ünï 100%"]
    assert report["top5"] == report["top3"] == 1
    assert report["dataset"] == "$tree_{"


def test_a_class_without_test_images_is_told(command, tree):
    flags, folder = (*QUICK, *from_folder(tree, 5), "--epochs", "1"), tree / "test" / "disc"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    done = command("main", *flags)
    assert done.code == 0
    assert f"warning: the test images of {tree} lack disc: " in done.out
    assert figures()["per_class"]["disc"]["support"] == 0
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no picture")
    done = command("main", *flags, "--skip_bad_images")
    assert done.code == 0
    assert f"warning: the test images of {tree} lack disc: " in done.out


def test_no_more_images_are_evaluated_at_a_time_than_a_part_of_a_batch(command, monkeypatch):
    sizes = []
    take = EvalBatches.__init__

    def noted(self, images, batch_size, *rest):
        sizes.append(batch_size)
        take(self, images, batch_size, *rest)

    monkeypatch.setattr(EvalBatches, "__init__", noted)
    assert command("main", *QUICK, "--accumulate", "2").code == 0
    assert sizes == [10, 10]  # during the run, and for the report


def test_a_path_too_long_is_one_line(command):
    done = command("main", "--data_dir", "a" * 300)
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_the_preview_is_a_grid_and_no_run(command):
    done = command("main", "--dataset", "digits", "--preview_augment", "grid.png")
    assert (done.code, done.err) == (0, "")
    with Image.open("grid.png") as image:
        assert min(image.size) > 800
    assert [p.name for p in Path().iterdir()] == ["grid.png"]
    assert command("main", "--dataset", "digits", "--preview_augment", "missing/grid.png").code == 2


def bad(*flags, **files):
    return pytest.param(flags, files, id=" ".join(flags) or "files")


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        bad("--epochs", "0"),
        bad("--no-such-flag"),
        bad("--lr", "nan"),
        bad("--min_lr", "1"),
        bad("--warmup_epochs", "2"),
        bad("--dropout", "1.5"),
        bad("--val_fraction", "1"),
        bad("--batch_size", "61"),
        bad("--limit_train", "3"),
        bad("--device", "cuda"),
        bad("--amp", "--amp_dtype", "fp16"),
        bad("--dataset", "folder", "--data_dir", "missing"),
        bad("--dataset", "folder", "--data_dir", "."),
        bad("--dataset", "folder", "--data_dir", "a_file", a_file=b""),
        bad("--dataset", "cifar10", "--data_dir", "a_file", a_file=b""),
        bad("--resume", "missing.pth"),
        bad("--resume", "."),
        bad("--val_fraction", "0.9999999999"),
        bad("--resume", "broken.pth", broken=b""),
        bad("--log_dir", "a_file", a_file=b""),
        bad("--snapshot_dir", "a_file/below", a_file=b""),
        bad("--plot_dir", "/dev/null/x"),
        bad("--preview_augment", "/dev/null/x.png"),
        bad("--preview_augment", "x.jpg"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, monkeypatch, flags, files):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, content in files.items():
        Path(name if name == "a_file" else f"{name}.pth").write_bytes(content)
    done = command("main", *QUICK, *flags)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.out + done.err


def test_a_run_that_diverges_exits_with_1_and_keeps_what_was_good(command):
    assert command("main", *QUICK, "--epochs", "1").code == 0
    done = command("main", *QUICK, "--lr", "1e30", "--max_grad_norm", "0", "--save_best")
    assert done.code == 1
    assert done.err.startswith("error: the loss is no longer finite: epoch 1")
    assert not Path("snapshots_complete/best_model.pth").exists()
    assert list(Path("snapshots_complete").glob("before_*/last.pth"))


def test_a_disk_that_fails_ends_with_1_after_the_report(command, monkeypatch):
    def fail(content, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cifarnet.reporting.recorders.write_snapshot", fail)
    done = command("main", *QUICK, "--epochs", "1")
    assert done.code == 1
    assert "last.pth" in done.err
    assert "No space left on device" in log_text()
    assert Path("plots_complete/metrics.json").exists()


# --- as processes ---


def start(directory: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "main.py", *QUICK, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=directory, text=True, **pipes)


def test_a_process_prints_lines_without_bars_and_no_warnings(tmp_path):
    with start(tmp_path, "--amp", "--num_workers", "2") as run:
        out, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (0, "")
    assert "\r" not in out
    assert out.count("\nepoch ") == 2


def test_a_process_told_nonsense_exits_with_2(tmp_path):
    with start(tmp_path, "--epochs", "none") as run:
        out, err = run.communicate(timeout=120)
    assert (run.returncode, out) == (2, "")
    assert err == "error: argument --epochs: invalid int value: 'none'; see --help\n"


def test_ctrl_c_says_how_to_go_on(tmp_path):
    snapshot = tmp_path / "snapshots_complete" / "last.pth"
    with start(tmp_path, "--epochs", "500", "--num_workers", "2") as run:
        deadline = time.monotonic() + 120
        while not snapshot.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert out.rstrip().endswith("--resume auto")


@pytest.mark.slow
def test_the_official_images_train(command, cifar10_dir):
    flags = ("--data_dir", cifar10_dir, "--limit_train", "500", "--limit_test", "200")
    assert command("main", *flags, "--batch_size", "50", "--epochs", "2", "--amp").code == 0
    assert figures()["dataset"] == "CIFAR-10"
    assert figures()["top1"] > 0.12  # one in ten by chance
