"""Whole runs, through the command line, as a user starts them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import DRAWN, QUICK, QUIET, assert_one_line, from_folder
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
PLOTS = {"training_curves.png", "learning_rate_schedule.png"}
PLOTS |= {"confusion_matrix.png", "class_metrics.png", "report.html"}
NUMBERS = {"metrics.json", "classification_report.txt", "predictions.csv", "predictions.npz"}
NUMBERS |= {"label_issues.csv"}


def names_in(directory: str) -> set[str]:
    return {path.name for path in Path(directory).iterdir()}


def test_what_a_run_leaves_behind(command):
    flags = ("--save_best", "--epochs", "3", "--plot_freq", "1", "--keep_snapshots", "2")
    done = command("main", *DRAWN, *flags)
    assert (done.code, done.err) == (0, "")
    assert names_in("plots_complete") == PLOTS | NUMBERS
    numbered = {f"snapshot_epoch_000{epoch}.pth" for epoch in (2, 3)}
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
        *("settings: ", "torch ", "device: cpu", "60 training", "Total params: 174,506"),
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


def test_presets_give_way_to_a_recipe_and_to_flags(command):
    Path("recipe.toml").write_text("amp = false\n")
    flags = (*QUICK, "--epochs", "1", "--recipe", "recipe.toml")
    assert command("run_complete_training", *flags).code == 0
    first_line = log_text().splitlines()[0]  # the command as given, without the presets
    assert " python run_complete_training.py --network lite" in first_line
    assert "--save_best" not in first_line
    settings = settings_of()
    assert settings["save_best"]
    assert not settings["amp"]
    assert not settings["plot_training"]
    assert names_in("plots_complete") == NUMBERS
    assert Path("snapshots_complete/best_model.pth").exists()


@pytest.mark.parametrize(
    ("engine", "amp"),
    [("albumentations", ("--no-amp",)), ("batched", ("--amp", "--amp_dtype", "bf16"))],
)
def test_a_resumed_run_equals_an_uninterrupted_one(command, amp, engine):
    flags = (*QUICK, "--network", "cifarnet", "--epochs", "4", "--save_best", *amp)
    flags += ("--augment_engine", engine)
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
    done = command("main", *flags)
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
    assert command(*evaluate, "again", *QUIET).code == 0
    assert figures(Path("again"))["loss"] == figures()["loss"]
    assert command(*evaluate, "raw", "--evaluate", "raw", *QUIET).code == 0
    assert figures(Path("raw"))["loss"] != figures()["loss"]
    assert figures(Path("raw"))["top1"] == float(final["raw_accuracy"])

    for path in Path("snapshots_complete").glob("*.pth"):
        if path.name != "snapshot_epoch_0001.pth":
            path.unlink()
    assert command("main", *flags, "--resume", "auto").code == 0
    again = snapshot("last.pth")
    for key in ("weights", "averaged", "optimizer", "history"):
        assert_same_state(again[key], last[key], key)


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


def test_folders_of_strange_names_and_few_classes(command):
    tree = draw_tree(Path("$tree_{"), classes=("$x_{", "<b>&amp;", "ünï 100%"))
    done = command("main", *DRAWN, *from_folder(tree, 7), "--epochs", "1")
    assert (done.code, done.err) == (0, "")
    report = figures()
    assert list(report["per_class"]) == ["$x_{", "<b>&amp;", "ünï 100%"]
    assert report["top5"] == report["top3"] == 1
    assert report["dataset"] == "$tree_{"


def test_a_class_without_test_images_is_told(command, tree):
    for path in (tree / "test" / "disc").iterdir():
        path.write_bytes(b"no picture")
    done = command("main", *QUICK, *from_folder(tree, 5), "--epochs", "1")
    assert (done.code, done.err.count("\n")) == (1, 1)
    done = command("main", *QUICK, *from_folder(tree, 5), "--epochs", "1", "--skip_bad_images")
    assert done.code == 0
    assert f"warning: the test images of {tree} lack disc: " in done.out
    assert figures()["per_class"]["disc"]["support"] == 0


def test_no_more_images_are_evaluated_at_a_time_than_a_part_of_a_batch(command, monkeypatch):
    sizes = []
    take = EvalBatches.__init__

    def noted(self, images, batch_size, *rest):
        sizes.append(batch_size)
        take(self, images, batch_size, *rest)

    monkeypatch.setattr(EvalBatches, "__init__", noted)
    assert command("main", *QUICK, "--accumulate", "2").code == 0
    assert sizes == [10, 10]  # during the run, and for the report


def test_a_process_prints_lines_without_bars_and_ctrl_c_says_how_to_go_on(tmp_path):
    flags = (*QUICK, "--epochs", "500", "--num_workers", "2", "--amp")
    words, pipes = [sys.executable, ROOT / "main.py", *flags], subprocess.PIPE
    with subprocess.Popen(words, cwd=tmp_path, text=True, stdout=pipes, stderr=pipes) as run:
        while not (line := run.stdout.readline()).startswith("epoch 1/"):
            assert line, run.stderr.read()
            assert "\r" not in line
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (130, "")
    assert out.rstrip().endswith("--resume auto")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--min_lr", "1"), "is above --lr"),
        (("--batch_size", "61"), "is above the 60 training images"),
        (("--limit_train", "3"), "is fewer images than the 10 classes"),
        (("--val_fraction", "0.9999999999"), "holds out every image"),
        (("--device", "cuda"), "is not available here"),
        (("--amp", "--amp_dtype", "fp16"), "fp16 needs CUDA"),
        (("--dataset", "folder", "--data_dir", "missing"), "does not exist"),
        (("--dataset", "folder", "--data_dir", "."), "where each folder is a class"),
        (("--dataset", "cifar10", "--data_dir", "a_file"), "is a file"),
        (("--dataset", "cifar10", "--data_dir", "a" * 300), "File name too long"),
        (("--resume", "missing.pth"), "No such file"),
        (("--resume", "."), "Is a directory"),
        (("--resume", "a_file.pth"), "its checksum does not match"),
        (("--snapshot_dir", "a_file/below"), "cannot write there"),
        (("--plot_dir", "/dev/null/x"), "cannot write there"),
        (("--plot_dir", "loop"), "cannot write there"),
        (("--preview_augment", "/dev/null/x.png"), "cannot write it"),
        (("--preview_augment", "x.jpg"), "end its name in .png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(command, monkeypatch, flags, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("a_file", "a_file.pth"):
        Path(name).touch()
    Path("loop").symlink_to("loop")
    assert_one_line(command("main", *QUICK, *flags), 2, words)


@pytest.mark.slow
def test_the_official_images_train(command, cifar10_dir):
    flags = ("--data_dir", cifar10_dir, "--limit_train", "500", "--limit_test", "200")
    assert command("main", *flags, "--batch_size", "50", "--epochs", "2", "--amp").code == 0
    assert figures()["dataset"] == "CIFAR-10"
    assert figures()["top1"] > 0.12  # one in ten by chance
