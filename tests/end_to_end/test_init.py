"""--init: a run that starts from a trained network."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.commands import QUICK, QUIET, from_folder
from support.outputs import (
    assert_same_state,
    epoch_of,
    figures,
    log_text,
    rows_of,
    settings_of,
    snapshot,
)
from support.pictures import draw_tree

from commands import training_run


@pytest.fixture
def run_from(command):
    """Runs one epoch from weights: `run_from(weights, tree, *flags)`; the rate is almost 0."""

    def run(weights: object, tree: object, *flags: object):
        quick = (*QUICK, "--network", "cifarnet", *from_folder(tree), "--epochs", "1")
        rate = ("--lr", "1e-7", "--min_lr", "0")
        return command("main", *quick, *rate, "--init", weights, *flags)

    return run


@pytest.mark.parametrize("source", ["weights", "snapshot"])
def test_a_run_starts_from_the_weights_that_it_names(command, run_from, trained, source):
    """With a learning rate near 0 the final weights are still those of the start."""
    path = getattr(trained, source)
    done = run_from(path, trained.tree)
    assert (done.code, done.err) == (0, "")
    assert f"starting from the weights {path}: epoch 4 of 4 on pictures\n" in done.out
    assert "starting from the weights" in log_text()
    before, after = torch.load(trained.snapshot)["weights"], snapshot("last.pth")["weights"]
    for name, value in before.items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0, msg=name)
    count = "c1.bn.num_batches_tracked"
    assert after[count] == before[count] + 3 == 15
    assert command("export", "--snapshot", "snapshots_complete/last.pth").code == 0
    assert settings_of("weights.safetensors")["init"] == path.name  # and no folder
    warning = "may have trained on the validation images"
    assert warning not in done.out
    assert warning in run_from(path, trained.tree, "--val_fraction", "0.5").out


def test_other_classes_get_a_fresh_head(run_from, trained):
    tree = draw_tree(Path("tree"), classes=("bar", "disc", "tree"))
    done = run_from(trained.weights, tree)
    assert (done.code, done.err) == (0, "")
    assert "; head loaded for 2 of 3 classes, matched by name\n" in done.out
    before, after = torch.load(trained.snapshot)["weights"], snapshot("last.pth")["weights"]
    assert (after["head.weight"] - before["head.weight"]).abs().max() > 1e-3
    name = "c4.conv.1.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=0)

    done = run_from(trained.weights, tree, "--width", "1.02")
    assert "; with a new head, as its shape differs\nrandomly initialized, no " in done.out

    tree = draw_tree(Path("others"), classes=("moth", "wasp"))
    done = run_from(trained.weights, tree, "--image_size", "48")
    assert (done.code, done.err) == (0, "")
    assert "; with a new head, as its classes differ (bar, disc, star, ...)" in done.out


def test_a_class_more_does_not_hide_that_validation_images_were_trained_on(run_from, trained):
    tree = draw_tree(Path("tree"), classes=("bar", "disc", "star", "tree"))
    flags = ("--val_fraction", "0.5")
    assert "have trained on the validation images" in run_from(trained.weights, tree, *flags).out


def test_a_resumed_run_does_not_start_from_the_weights_again(run_from, trained):
    flags = ("--lr", "0.05", "--epochs", "2")
    Path("w.safetensors").write_bytes(trained.weights.read_bytes())
    whole = run_from("w.safetensors", trained.tree, *flags, "--snapshot_dir", "whole")
    assert whole.code == 0
    Path("w.safetensors").unlink()
    resumed = ("--resume", "whole/snapshot_epoch_0001.pth", "--snapshot_dir", "parts")
    done = run_from("w.safetensors", trained.tree, *flags, *resumed)
    assert done.code == 0, done.err
    assert "starting from the weights" not in done.out
    assert "epoch 0" not in done.out
    whole, parts = (snapshot("last.pth", run) for run in ("whole", "parts"))
    for part in ("weights", "history"):
        assert_same_state(whole[part], parts[part], part)
    assert [row["epoch"] for row in whole["history"]] == [0, 1, 2]
    done = run_from(trained.weights, trained.tree, *flags, *resumed)
    assert done.code == 2
    assert "init w.safetensors -> " in done.err


@pytest.mark.parametrize("averaged", [False, True])
def test_epoch_0_is_the_evaluation_of_the_start(command, run_from, trained, averaged):
    flags = ("--dataset", "folder", "--data_dir", trained.tree, *QUIET)
    assert command("evaluate", "--pretrained", trained.weights, *flags).code == 0
    start = figures()
    flags = ("--ema_decay", "0.9", "--evaluate", "ema") if averaged else ()
    done = run_from(trained.weights, trained.tree, "--save_best", *flags)
    assert (done.code, done.err) == (0, "")
    first, last = rows_of(Path("log"))
    assert (first["epoch"], first["train_loss"], first["lr"]) == ("0", "", "")
    assert float(first["test_accuracy"]) == start["top1"]
    assert float(first["test_loss"]) == pytest.approx(start["loss"], rel=1e-5)
    assert first["raw_accuracy"] == (first["test_accuracy"] if averaged else "")
    assert f"epoch 0, the weights of --init | test {start['loss']:.4f} " in log_text()
    assert last["epoch"] == "1" and epoch_of("best_model.pth") == 1


def test_the_start_changes_no_weight(run_from, trained, monkeypatch):
    """The same run, with and without the evaluation of its start."""
    runs = []
    for name in ("with", "without"):
        flags = ("--lr", "0.05", "--snapshot_dir", name, "--ema_decay", "0.9")
        assert run_from(trained.weights, trained.tree, *flags).code == 0
        runs.append(snapshot("last.pth", name))
        monkeypatch.setattr(training_run, "measure_start", lambda *arguments: None)
    for part in ("weights", "averaged", "optimizer", "random_state"):
        assert_same_state(runs[0][part], runs[1][part], part)
    assert [len(run["history"]) for run in runs] == [2, 1]


def test_a_run_that_ends_below_its_start_says_so(run_from, trained):
    tree = Path(shutil.copytree(trained.tree, "wrong"))
    for name, wrong in (("bar", "x"), ("disc", "bar"), ("star", "disc"), ("x", "star")):
        (tree / "train" / name).rename(tree / "train" / wrong)
    flags = ("--lr", "0.2", "--epochs", "3", "--report", "--plot_training")
    done = run_from(trained.weights, tree, *flags)
    assert (done.code, done.err) == (0, "")
    rows = rows_of(Path("log"))
    first, last = (float(rows[at]["test_accuracy"]) for at in (0, -1))
    assert last < first
    assert f"warning: accuracy fell from {first:.2%}" in log_text()
    assert "every step of epoch 1 was clipped" in log_text()
    page = Path("plots_complete/report.html").read_text()
    assert f"before the training: {100 * first:.2f} %" in page
    assert "The network is worse than at its start." in page


@pytest.mark.parametrize("name", ["missing.safetensors", "damaged.pth"])
def test_wrong_weights_to_start_from_are_one_line(run_from, name):
    Path("damaged.pth").write_bytes(b"no weights")
    Path("no_images").mkdir()  # they are read or downloaded later
    done = run_from(name, "no_images")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("error: --init: ")
    assert not list(Path().glob("log/*.log"))


def test_weights_that_the_run_would_replace_are_refused(run_from, trained):
    path = Path("snapshots_complete/last.pth")
    path.parent.mkdir()
    path.write_bytes(trained.snapshot.read_bytes())
    done = run_from(path, trained.tree)
    assert done.code == 2
    assert f"error: --init {path} is in this run's --snapshot_dir" in done.err
    assert path.read_bytes() == trained.snapshot.read_bytes()


def test_test_images_that_a_grown_folder_draws_anew_may_have_been_trained_on(command, run_from):
    tree = draw_tree(Path("tree"), train=20, test=0) / "train"
    assert command("main", *QUICK, "--network", "cifarnet", *from_folder(tree)).code == 0
    weights = Path("snapshots_complete/last.pth").rename("first.pth")
    warning = "may have trained on the test images; accuracy on them may be too high"
    assert warning not in run_from(weights, tree).out
    Image.new("RGB", (32, 32)).save(tree / "bar" / "0000.png")
    assert warning in run_from(weights, tree).out
