import dataclasses
import re
from pathlib import Path

import pytest
from support.snapshots import make_snapshot

from cifarnet.checkpoints.resume import (
    CurrentRun,
    ResumePlan,
    compare_settings,
    plan_resume,
    seen_images,
)
from cifarnet.checkpoints.snapshots import Snapshot
from cifarnet.core.errors import UserError
from cifarnet.settings import Settings

SOURCE = Path("snapshots/last.pth")


def current_run(same_images: bool = True, **changes) -> CurrentRun:
    """A run like that of `make_snapshot`, but for `changes`: fields of `CurrentRun`, or flags."""
    names = {field.name for field in dataclasses.fields(CurrentRun)}
    flags = {name: value for name, value in changes.items() if name not in names}
    fields = {
        "settings": Settings.from_flags(**{"epochs": 10, "amp": True} | flags),
        "classes": ("a", "ü"),
        "same_normalization": lambda mean, std: same_images,
        "validates": False,
        "drawn_test": False,
        "held_out_sha256": "0",
        "teacher_sha256": None,
        "computed_on": "cpu in bfloat16",
        "world_size": 1,
        "rate_after": lambda epochs: 0.07,
    }
    return CurrentRun(**fields | {name: changes[name] for name in changes if name in names})


def plan_for(snapshot: Snapshot, current: CurrentRun) -> ResumePlan:
    changes = compare_settings(snapshot, SOURCE, current.settings)
    return plan_resume(snapshot, SOURCE, changes, current)


def test_the_same_run_continues_without_further_words():
    snapshot = make_snapshot()
    plan = plan_for(snapshot, current_run())
    assert plan.messages == (f"resuming after epoch 3 from {SOURCE}",)
    assert (plan.snapshot, plan.keeps_momenta, plan.finished) == (snapshot, True, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.2, "seed": 7}, "lr 0.1 -> 0.2, seed 42 -> 7 would alter the result"),
        ({"epochs": 9}, "epochs 10 -> 9 would alter"),
        ({"same_images": False}, "the training images"),
        ({"optimizer": "adamw"}, "optimizer sgd -> adamw would alter"),
    ],
    ids=str,
)
def test_what_alters_the_result_is_refused_unless_overridden(changes, words):
    with pytest.raises(UserError, match=words):
        plan_for(make_snapshot(), current_run(**changes))
    plan = plan_for(make_snapshot(), current_run(**changes, resume_override=True))
    assert "; changed: " in plan.messages[0]
    assert plan.keeps_momenta == ("optimizer" not in changes)


def test_other_classes_are_refused_even_then():
    with pytest.raises(UserError, match=r"class names differ: the network knows 2 \(a, ü"):
        plan_for(make_snapshot(), current_run(classes=("a", "b", "c"), resume_override=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_workers": 3, "plot_dir": "x"}, "changed: num_workers None -> 3, plot_dir"),
        ({"computed_on": "cuda in bfloat16"}, "computed on cpu in bfloat16 before, on "),
        ({"epochs": 20}, "--epochs 20 stretches the schedule .* 0.5 at the end of epoch 3 .* 0.07"),
    ],
    ids=str,
)
def test_other_differences_are_reported(changes, words):
    messages = " | ".join(plan_for(make_snapshot(), current_run(**changes)).messages)
    assert re.search(words, messages), messages


AVERAGES, EARLIER = {"ema_decay": 0.5}, {"held_out_sha256": ""}
FOLDER = {"dataset": "folder"}


@pytest.mark.parametrize(
    ("before", "changes", "best"),
    [
        ({}, {}, 3), ({}, {"held_out_sha256": "1"}, 0), (EARLIER, {"held_out_sha256": "1"}, 3),
        (EARLIER, {"limit_test": 9}, 0), (EARLIER, {"lr": 0.2}, 3),
        (AVERAGES, AVERAGES, 3), (AVERAGES, AVERAGES | {"evaluate": "ema"}, 0),
        ({}, {"held_out_sha256": "1", "epochs": 3}, 3),  # finished
    ],
    ids=str,
)  # fmt: skip
def test_the_best_epoch_is_forgotten_where_accuracies_cannot_be_compared(before, changes, best):
    state = EARLIER if before is EARLIER else {"settings": before}
    snapshot = make_snapshot(**state)
    plan = plan_for(snapshot, current_run(**changes, resume_override=True))
    progress = dataclasses.replace(snapshot.state.progress, comparable_after=plan.comparable_after)
    assert progress.best_epoch == best
    assert any("is chosen from later" in line for line in plan.messages) == (best == 0)


@pytest.mark.parametrize(
    ("validates", "same_images", "fraction", "seen"),
    [(False, True, 0.1, False), (True, True, 0.1, False), (True, True, 0.2, True),
     (True, False, 0.1, True)],
)  # fmt: skip
def test_who_may_have_trained_on_validation_images(validates, same_images, fraction, seen):
    model = make_snapshot(settings={"val_fraction": 0.1}).model
    current = current_run(same_images, validates=validates, val_fraction=fraction)
    assert seen_images(model, current) == ("validation images" if seen else "")


TESTED, BOTH = "test images", "validation images and test images"


@pytest.mark.parametrize(
    ("before", "same_images", "changes", "seen"),
    [(FOLDER, True, {}, ""), (FOLDER, False, {}, TESTED),
     (FOLDER, True, {"test_fraction": 0.3}, TESTED),
     (FOLDER, False, {"limit_train": 9}, ""), ({}, False, {}, ""),
     (FOLDER, False, {"validates": True}, BOTH)],
)  # fmt: skip
def test_who_may_have_trained_on_test_images_that_are_drawn(before, same_images, changes, seen):
    """Another choice is drawn from a folder whose files have changed, or of another share. Other
    flags change the channel statistics, but not the test images."""
    model, now = make_snapshot(settings=before).model, FOLDER | changes
    assert seen_images(model, current_run(same_images, drawn_test=True, **now)) == seen
    assert TESTED not in seen_images(model, current_run(same_images, drawn_test=False, **now))
