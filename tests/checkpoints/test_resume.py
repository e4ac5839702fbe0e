import dataclasses
import re
from pathlib import Path

import pytest
from support.snapshots import make_row, make_snapshot

from cifarnet.checkpoints.resume import (
    CurrentRun,
    ResumePlan,
    compare_settings,
    may_have_seen,
    plan_resume,
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
        "teacher_sha256": None,
        "computed_on": "cpu in bfloat16",
        "world_size": 1,
        "rate_after": lambda epochs: 0.07,
    }
    return CurrentRun(**fields | {name: changes[name] for name in changes if name in names})


def plan_for(snapshot: Snapshot, current: CurrentRun) -> ResumePlan:
    changes = compare_settings(snapshot, SOURCE, current.settings)
    return plan_resume(snapshot, SOURCE, changes, current)


def best_epoch(snapshot: Snapshot, **changes) -> int:
    """The best epoch that the run continues with."""
    plan = plan_for(snapshot, current_run(**changes))
    return dataclasses.replace(
        snapshot.state.progress, comparable_after=plan.comparable_after
    ).best_epoch


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
        ({"computed_on": "cuda in bfloat16"}, "that run computed on cpu in bfloat16, this one on "),
        ({"epochs": 20}, "--epochs 20 stretches the schedule .* 0.5 at the end of epoch 3 .* 0.07"),
    ],
    ids=str,
)
def test_other_differences_are_reported(changes, words):
    messages = " | ".join(plan_for(make_snapshot(), current_run(**changes)).messages)
    assert re.search(words, messages), messages


@pytest.mark.parametrize(
    "change", [{"limit_test": 9}, {"val_fraction": 0.5}, {"skip_bad_images": True}, {}], ids=str
)
def test_accuracies_on_other_images_are_not_compared(change):
    assert best_epoch(make_snapshot(), **change, resume_override=True) == (0 if change else 3)


def test_another_seed_holds_back_the_same_images_and_the_best_by_them_stays():
    validated = [make_row(3, val_loss=0.5, val_accuracy=0.5)]
    snapshot = make_snapshot(settings={"val_fraction": 0.5}, history=validated)
    flags = {"val_fraction": 0.5, "seed": 7, "resume_override": True}
    assert best_epoch(snapshot, **flags, validates=True) == 3


def test_the_best_by_test_images_is_forgotten_once_there_are_validation_images():
    assert best_epoch(make_snapshot(), validates=True) == 0
    assert best_epoch(make_snapshot(), validates=False) == 3


def test_the_best_of_other_weights_is_forgotten():
    snapshot = make_snapshot(settings={"ema_decay": 0.5})
    flags = {"ema_decay": 0.5, "resume_override": True}
    assert best_epoch(snapshot, **flags, evaluate="raw") == 3
    assert best_epoch(snapshot, **flags, evaluate="ema") == 0


@pytest.mark.parametrize(
    ("validates", "same_images", "fraction", "seen"),
    [(False, True, 0.1, False), (True, True, 0.1, False), (True, True, 0.2, True),
     (True, False, 0.1, True)],
)  # fmt: skip
def test_who_may_have_trained_on_validation_images(validates, same_images, fraction, seen):
    model = make_snapshot(settings={"val_fraction": 0.1}).model
    current = current_run(same_images, validates=validates, val_fraction=fraction)
    assert may_have_seen(model, current) == seen
