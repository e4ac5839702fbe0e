"""Mixed images and published policies as a user meets them: runs, resuming, a teacher."""

from pathlib import Path

from support.commands import QUICK
from support.outputs import assert_same_state, log_text, rows_of, snapshot

MIXED = (*QUICK, "--mixup", "0.2", "--cutmix", "1", "--mix_p", "0.8", "--accumulate", "2")


def test_a_resumed_run_equals_an_uninterrupted_one(command):
    """With all that has draws of its own."""
    flags = (*MIXED, "--auto_augment", "trivialaugment", "--class_weights", "balanced")
    done = command("main", *flags, "--snapshot_dir", "whole", "--report")
    assert (done.code, done.err) == (0, "")
    assert "the training accuracy counts the class of larger share" in log_text()
    page = Path("plots_complete/report.html").read_text(encoding="utf-8")
    assert "The training accuracy counts the class with the larger share" in page
    assert "The training loss uses smoothed, weighted, mixed labels" in page
    for flag, value in (("auto_augment", "trivialaugment"), ("mixup", "0.2"), ("cutmix", "1.0")):
        assert f'>--{flag}</code></th><td class="value">{value}</td>' in page
    parts = ("--snapshot_dir", "parts", "--resume", "whole/snapshot_epoch_0001.pth")
    assert command("main", *flags, *parts).code == 0
    whole, resumed = (snapshot("last.pth", place) for place in ("whole", "parts"))
    for name in ("weights", "optimizer", "history"):
        assert_same_state(resumed[name], whole[name], name)
    others = ("--mixup", "0.3", "--auto_augment", "randaugment")
    done = command("main", *flags, "--resume", "auto", "--snapshot_dir", "whole", *others)
    assert done.code == 2
    for change in ("auto_augment trivialaugment -> randaugment", "mixup 0.2 -> 0.3"):
        assert change in done.err


def test_mixing_changes_what_is_learnt_and_mix_p_0_nothing(command):
    losses = []
    for flags in ((), ("--mixup", "1", "--mix_p", "0"), ("--mixup", "1"), ("--cutmix", "1")):
        plain = (*QUICK, "--augment", "none", "--epochs", "1", "--limit_train", "61")
        assert command("main", *plain, *flags).code == 0  # the last batch is one image
        losses.append(rows_of(Path("log"))[0]["train_loss"])
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_a_default_batch_that_has_nothing_to_mix_is_refused(command):
    few = ("--dataset", "digits", "--limit_train", "10", "--limit_test", "10", "--accumulate", "8")
    done = command("main", *few, "--mixup", "1")
    assert done.code == 2
    assert "--batch_size 8 has one image in each of 8 parts" in done.err


def test_two_teachers_and_mixed_images_go_together(command, trained):
    tree = ("--dataset", "folder", "--data_dir", trained.tree, "--batch_size", "6")
    done = command("main", *MIXED, *tree, "--teacher", f"{trained.weights},{trained.snapshot}")
    assert (done.code, done.err) == (0, "")
    for teacher in (trained.weights, trained.snapshot):
        assert f"learning from {teacher}: " in done.out
