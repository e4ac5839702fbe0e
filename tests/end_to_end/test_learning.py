"""A run that learns from a trained network, through the command line."""

import re
from pathlib import Path

import pytest
import torch
from support.commands import QUICK, QUIET, SHORT, from_folder
from support.outputs import figures, settings_of, snapshot
from support.pictures import draw_tree

import plots


def learn_from(command, teacher, tree, *flags):
    quick = (*QUICK, *from_folder(tree), "--amp", "--ema_decay", "0.5")
    return command("main", *quick, "--teacher", teacher, *flags)


def test_a_run_learns_from_a_larger_network_and_goes_on_learning_from_it(command, trained):
    """Its teacher is a run's snapshot: `export`, `predict` and `evaluate` take it too."""
    quick, sizes = (*QUICK, *from_folder(trained.tree)), ("--image_sizes", "16,32")
    places = [f"--{what}_dir=larger" for what in ("snapshot", "plot")]
    done = command("main", *quick, "--network", "residual", *sizes, *places)
    assert (done.code, done.err) == (0, "")
    larger = ("larger/last.pth", trained.tree, *sizes)
    done = learn_from(command, *larger, "--snapshot_dir", "whole")
    assert (done.code, done.err) == (0, "")
    assert re.search(
        r"learning from larger/last.pth: epoch 2 of 2 on pictures, "
        r"top-1 \d+\.\d\d% \(the run's history",
        done.out,
    )
    parts = ("--snapshot_dir", "parts", "--resume", "whole/snapshot_epoch_0001.pth")
    assert learn_from(command, *larger, *parts).code == 0
    for kept in ("weights", "averaged"):
        whole, parts = (snapshot("last.pth", place)[kept] for place in ("whole", "parts"))
        assert whole
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert command("main", *quick, "--amp").code == 0
    learnt, untaught = (snapshot("last.pth", *run)["weights"] for run in (("whole",), ()))
    assert any(not torch.equal(untaught[name], learnt[name]) for name in untaught)
    assert command("export", "--snapshot", "whole/last.pth").code == 0
    assert settings_of("weights.safetensors")["teacher"] == "larger/last.pth"
    assert command("export", "--snapshot", "larger/last.pth").code == 0
    done = command("predict", "--pretrained", "weights.safetensors", trained.tree / "test")
    assert (done.code, done.err) == (0, "")
    flags = ("--dataset", "folder", "--data_dir", trained.tree, "--plot_dir", "again")
    done = command("evaluate", *flags, "--pretrained", "weights.safetensors", *QUIET)
    assert (done.code, done.err) == (0, "")
    again, before = (figures(Path(name))["confusion_matrix"] for name in ("again", "larger"))
    assert again == before


def test_a_resumed_run_knows_its_teachers_by_their_weights(command, trained):
    """Whatever their paths and their order."""
    teacher, moved = (Path(name).absolute() for name in ("t.safetensors", "a,b.safetensors"))
    teacher.write_bytes(trained.weights.read_bytes())
    by_another_path = Path("..") / Path.cwd().name / "t.safetensors"
    done = learn_from(command, f"{by_another_path},lite", trained.tree)
    assert (done.code, "--teacher lite: class names differ" in done.err) == (2, True)
    assert learn_from(command, f"{by_another_path},{trained.snapshot}", trained.tree).code == 0
    assert command("export", "--snapshot", "snapshots_complete/last.pth").code == 0
    teacher_of_weights = settings_of("weights.safetensors")["teacher"]
    assert teacher_of_weights == f"t.safetensors,{trained.snapshot.name}"  # without the folders
    teacher.rename(moved)
    both = f"{trained.snapshot},{moved}"
    first = ("--resume", "snapshots_complete/snapshot_epoch_0001.pth", "--snapshot_dir", "more")
    assert learn_from(command, both, trained.tree, *first).code == 0
    moved.write_bytes(Path("weights.safetensors").read_bytes())
    for others in (both, trained.snapshot):
        done = learn_from(command, others, trained.tree, *first)
        assert done.code == 2
        assert f"the teacher {others} (its weights differ) would alter the result" in done.err
    done = learn_from(command, both, trained.tree, *first, "--lr", "0.05", "--resume_override")
    assert done.code == 0
    assert f"lr 0.1 -> 0.05, the teacher {both} (its weights differ)\n" in done.out


def test_the_curves_say_which_training_loss_they_show(command, trained, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "training_curves", lambda *arguments: shown.append(arguments[3:]))
    assert learn_from(command, trained.weights, trained.tree, "--plot_training").code == 0
    done = learn_from(command, trained.weights, trained.tree, "--plot_training", "--resume", "auto")
    assert "evaluating only" in done.out  # the teacher is not read again
    plain = ("--label_smoothing", "0", "--class_weights", "balanced")
    for flags in (("--mixup", "0.2"), plain, plain[2:], (*plain[:2], "--cutmix", "1"), plain[:2]):
        assert command("main", *SHORT, "--plot_training", *flags).code == 0
    assert shown == [
        ("train, from the teacher", "train", 0),
        ("train, from the teacher", "train", 0),
        ("train, smoothed labels, mixed", "train, larger share", 0),
        ("train, weighted labels", "train", 0),
        ("train, smoothed, weighted labels", "train", 0),
        ("train, labels, mixed", "train, larger share", 0),
        ("train", "train", 0),
    ]


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


@pytest.mark.slow
def test_a_teacher_of_the_validation_images_is_warned_of(command, trained):
    halved = ("--val_fraction", "0.5")
    assert command("main", *QUICK, *from_folder(trained.tree), "--epochs", "1", *halved).code == 0
    Path("alike.pth").write_bytes(Path("snapshots_complete/last.pth").read_bytes())
    more = draw_tree(Path("more"), classes=("bar", "disc", "star"), train=8)
    for teacher, flags, warned in (
        (trained.weights, (), False),
        (trained.weights, halved, True),
        ("t.pth", halved, False),  # its own teacher has seen them
        ("t.pth", (*halved, "--limit_train", "12"), True),
        ("alike.pth", halved, False),
        ("alike.pth", (*halved, "--data_dir", more), True),  # another split
    ):
        done = learn_from(command, teacher, trained.tree, *flags)
        warning = "warning: the teacher may have trained on the validation images"
        assert (done.code, warning in done.out) == (0, warned)
        indirectly = f"warning: the teacher learnt from {trained.weights}; accuracy on validation"
        assert (indirectly in done.out) == (teacher == "t.pth" and not warned)
        Path("t.pth").write_bytes(Path("snapshots_complete/last.pth").read_bytes())


def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_lost(command, trained):
    assert learn_from(command, trained.weights, trained.tree).code == 0
    kept = Path("snapshots_complete/last.pth").read_bytes()
    wrong = {
        "snapshots_complete/last.pth": "is in this run's --snapshot_dir",
        "nowhere.pth": "cannot be read",
        "snapshots_teacher/last.pth": "recipes/teacher.toml trains one",
        f"{trained.weights},nowhere.pth": "nowhere.pth cannot be read",
        "a,b/w.safetensors": "--teacher a,b/w.safetensors: there are no weights 'a'",
    }
    Path("empty").mkdir()
    for teacher, words in wrong.items():
        done = learn_from(command, teacher, "empty")  # told before images are looked for
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith("error: --teacher")
        assert words in done.err
    other = draw_tree(Path("tree"), classes=("bar", "disc", "tree"))
    done = learn_from(command, trained.weights, other)
    assert done.code == 2
    assert done.err.startswith(f"error: --teacher {trained.weights}: class names differ: ")
    assert Path("snapshots_complete/last.pth").read_bytes() == kept
