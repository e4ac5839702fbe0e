"""A run that learns from a trained network, through the command line."""

import json
import re
from pathlib import Path

import torch
from conftest import QUICK, draw_tree
from test_pretrained import metadata
from test_runs import snapshot

import plots


def learn_from(command, teacher, tree, *flags):
    quick = (
        *QUICK,
        "--dataset",
        "folder",
        "--data_dir",
        tree,
        "--batch_size",
        "6",
        "--amp",
        "--ema_decay",
        "0.5",
    )
    return command("main", *quick, "--teacher", teacher, *flags)


def test_a_run_learns_from_a_larger_network_and_goes_on_learning_from_it(command, trained):
    """Its teacher is a run's snapshot, as good a network as any other for `export`, `predict` and `evaluate`."""
    places = [f"--{what}_dir=larger" for what in ("snapshot", "plot")]
    quick = (*QUICK, "--dataset", "folder", "--data_dir", trained.tree, "--batch_size", "6")
    larger = (*quick, "--network", "residual", *places)
    done = command("main", *larger)
    assert (done.code, done.err) == (0, "")
    done = learn_from(
        command,
        "larger/last.pth",
        trained.tree,
        "--image_sizes",
        "16,32",
        "--snapshot_dir",
        "whole",
    )
    assert (done.code, done.err) == (0, "")
    assert re.search(
        r"learning from larger/last.pth: epoch 2 of 2 on pictures, top-1 \d+\.\d\d% \(the run's history",
        done.out,
    )
    flags = ("--image_sizes", "16,32", "--resume", "whole/snapshot_epoch_0001.pth")
    assert learn_from(command, "larger/last.pth", trained.tree, *flags).code == 0
    for kept in ("model", "averaged"):
        whole, parts = snapshot("last.pth", "whole")[kept], snapshot("last.pth")[kept]
        assert whole
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert command("main", *quick, "--amp").code == 0
    learnt = snapshot("last.pth", "whole")["model"]
    assert any(
        not torch.equal(value, learnt[name])
        for name, value in snapshot("last.pth")["model"].items()
    )
    assert command("export", "--snapshot", "whole/last.pth").code == 0
    assert metadata(Path("weights.safetensors"))["config"]["teacher"] == "larger/last.pth"
    assert command("export", "--snapshot", "larger/last.pth").code == 0
    done = command("predict", "--pretrained", "weights.safetensors", trained.tree / "test")
    assert (done.code, done.err) == (0, "")
    flags = (
        "--dataset",
        "folder",
        "--data_dir",
        trained.tree,
        "--pretrained",
        "weights.safetensors",
    )
    assert command("evaluate", *flags, "--plot_dir", "again").code == 0
    again, before = (
        json.loads(Path(name, "metrics.json").read_text()) for name in ("again", "larger")
    )
    assert again["confusion_matrix"] == before["confusion_matrix"]


def test_a_resumed_run_knows_its_teacher_by_its_weights(command, trained):
    places = [Path(name).absolute() for name in ("t.safetensors", "moved.safetensors")]
    places[0].write_bytes(trained.weights.read_bytes())
    assert (
        learn_from(command, Path("..") / Path.cwd().name / "t.safetensors", trained.tree).code == 0
    )
    assert command("export", "--snapshot", "snapshots_complete/last.pth").code == 0
    assert (
        metadata(Path("weights.safetensors"))["config"]["teacher"] == "t.safetensors"
    )  # and no place
    places[0].rename(places[1])
    first = ("--resume", "snapshots_complete/snapshot_epoch_0001.pth", "--snapshot_dir", "more")
    assert learn_from(command, places[1], trained.tree, *first).code == 0
    places[1].write_bytes(Path("weights.safetensors").read_bytes())
    done = learn_from(command, places[1], trained.tree, *first)
    assert done.code == 2
    assert f"the teacher {places[1]} (its weights are others) would alter the result" in done.err
    done = learn_from(command, places[1], trained.tree, *first, "--lr", "0.05", "--resume_override")
    assert done.code == 0
    assert f"lr 0.1 -> 0.05, the teacher {places[1]} (its weights are others)\n" in done.out


def test_the_curves_say_which_training_loss_they_show(command, trained, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "training_curves", lambda *arguments: shown.append(arguments[-1]))
    assert learn_from(command, trained.weights, trained.tree, "--plot_training").code == 0
    for flags in (("--label_smoothing", "0.1"), ()):
        assert command("main", *QUICK, "--epochs", "1", "--plot_training", *flags).code == 0
    assert shown == ["train, from the teacher", "train, smoothed labels", "train"]


def test_a_finished_run_is_looked_at_again_without_its_teacher(command, trained):
    Path("t.safetensors").write_bytes(trained.weights.read_bytes())
    assert learn_from(command, "t.safetensors", trained.tree).code == 0
    Path("t.safetensors").unlink()
    for teacher in ("t.safetensors", "moved.safetensors"):
        done = learn_from(command, teacher, trained.tree, "--resume", "auto")
        assert (done.code, done.err) == (0, "")
        assert "evaluating only" in done.out
    done = learn_from(command, "t.safetensors", trained.tree, "--resume", "auto", "--epochs", "3")
    assert (done.code, done.err.startswith("error: --teacher")) == (2, True)


def test_a_teacher_of_the_validation_images_is_warned_of(command, trained):
    quick = (
        *QUICK,
        "--dataset",
        "folder",
        "--data_dir",
        trained.tree,
        "--batch_size",
        "6",
        "--epochs",
        "1",
    )
    assert command("main", *quick, "--val_fraction", "0.5").code == 0
    Path("alike.pth").write_bytes(Path("snapshots_complete/last.pth").read_bytes())
    more = draw_tree(Path("more"), classes=("bar", "disc", "star"), train=8)
    for teacher, split, warned in (
        (trained.weights, (), False),
        (trained.weights, ("--val_fraction", "0.5"), True),
        ("t.pth", ("--val_fraction", "0.5"), False),  # but what it learnt from has
        ("t.pth", ("--val_fraction", "0.5", "--limit_train", "12"), True),
        ("alike.pth", ("--val_fraction", "0.5"), False),
        (
            "alike.pth",
            ("--val_fraction", "0.5", "--data_dir", more),
            True,
        ),  # whose split is another
    ):
        done = learn_from(command, teacher, trained.tree, *split)
        assert (done.code, "warning: the teacher has seen the validation images" in done.out) == (
            0,
            warned,
        )
        indirectly = f"warning: the teacher learnt from another one, {trained.weights}: if that one has seen the"
        assert (indirectly in done.out) == (teacher == "t.pth" and not warned)
        Path("t.pth").write_bytes(Path("snapshots_complete/last.pth").read_bytes())


def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_lost(command, trained):
    assert learn_from(command, trained.weights, trained.tree).code == 0
    kept = Path("snapshots_complete/last.pth").read_bytes()
    wrong = {
        "snapshots_complete/last.pth": r"is in this run's --snapshot_dir, where it would be replaced; choose another",
        "nowhere.pth": "cannot be read",
        "nobody": "no weights 'nobody'",
        "snapshots_long_teacher/last.pth": "name a .pth file that a run wrote (recipes/long_teacher.toml trains one; --teacher off does without)\n",
    }
    for teacher, words in wrong.items():
        done = learn_from(
            command, teacher, "tree/that/is/not/there"
        )  # told before images are read or downloaded
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith("error: --teacher")
        assert words in done.err
    done = learn_from(
        command, trained.weights, draw_tree(Path("tree"), classes=("bar", "disc", "tree"))
    )
    assert done.code == 2
    assert (
        "is for other classes than the training images have, or in another order (star in place of tree)"
        in done.err
    )
    done = learn_from(command, trained.weights, trained.tree, "--label_smoothing", "0.1")
    assert done.code == 2
    assert "--label_smoothing" in done.err
    assert Path("snapshots_complete/last.pth").read_bytes() == kept
