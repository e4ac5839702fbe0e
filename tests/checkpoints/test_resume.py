import dataclasses
import re
from pathlib import Path

import pytest
from states import make_row, make_state

from cifarnet.checkpoints.places import BEST, LAST, numbered
from cifarnet.checkpoints.resume import Present, make_room, may_have_seen, plan_resumption
from cifarnet.checkpoints.snapshots import load, pack, save
from cifarnet.core.errors import UserError
from cifarnet.settings import Settings

SOURCE = Path("snapshots/last.pth")


def present(same_images: bool = True, **changes) -> Present:
    """A run that equals that of `make_state`, but for `changes`: of `Present` or the settings."""
    own = {field.name for field in dataclasses.fields(Present)}
    settings = {name: value for name, value in changes.items() if name not in own}
    fields = {
        "settings": Settings.from_flags(**{"epochs": 10, "amp": True} | settings),
        "classes": ("a", "ü"),
        "same_statistics": lambda mean, std: same_images,
        "validates": False,
        "teacher_sha256": None,
        "computed_on": "cpu in bfloat16",
        "world_size": 1,
        "rate_after": lambda epochs: 0.07,
    }
    return Present(**fields | {name: changes[name] for name in changes if name in own})


def test_the_same_run_goes_on_without_further_words():
    state = make_state()
    plan = plan_resumption(state, SOURCE, present())
    assert plan.said == (f"resuming after epoch 3 from {SOURCE}",)
    assert (plan.state, plan.keeps_momenta, plan.finished) == (state, True, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.2, "seed": 7}, "lr 0.1 -> 0.2, seed 42 -> 7 would alter the result"),
        ({"epochs": 9}, "epochs 10 -> 9 would alter"),
        ({"same_images": False}, "the training images .* would alter"),
        ({"classes": ("a", "b", "c")}, r"class names differ: the network knows 2 \(a, ü"),
        ({"optimizer": "adamw"}, "optimizer sgd -> adamw would alter"),
    ],
    ids=str,
)
def test_what_alters_the_result_is_refused_unless_told(changes, words):
    with pytest.raises(UserError, match=words):
        plan_resumption(make_state(), SOURCE, present(**changes))
    told = present(**changes, resume_override=True)
    if "classes" in changes:
        with pytest.raises(UserError, match=words):
            plan_resumption(make_state(), SOURCE, told)
    else:
        plan = plan_resumption(make_state(), SOURCE, told)
        assert "; changed: " in plan.said[0]
        assert plan.keeps_momenta == ("optimizer" not in changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_workers": 3, "plot_dir": "x"}, "changed: num_workers None -> 3, plot_dir"),
        ({"computed_on": "cuda in bfloat16"}, "that run computed on cpu in bfloat16, this one on "),
        ({"world_size": 2}, "that run had 1 rank, this one has 2"),
        ({"epochs": 20}, "--epochs 20 stretches the schedule .* 0.5 at the end of epoch 3 .* 0.07"),
    ],
    ids=str,
)
def test_what_else_is_new_is_said(changes, words):
    said = " | ".join(plan_resumption(make_state(), SOURCE, present(**changes)).said)
    assert re.search(words, said), said


def test_a_finished_run_is_evaluated_only():
    plan = plan_resumption(make_state(10), SOURCE, present())
    assert plan.finished
    assert "evaluating only" in plan.said[-1]


@pytest.mark.parametrize(
    "change", [{"limit_test": 9}, {"val_fraction": 0.5}, {"skip_bad_images": True}, {}], ids=str
)
def test_the_best_by_other_images_is_forgotten(change):
    plan = plan_resumption(make_state(), SOURCE, present(**change, resume_override=True))
    assert (plan.state.best_epoch > 0) == (not change)


def test_another_seed_holds_back_the_same_images_and_the_best_by_them_stays():
    config = make_state().config | {"val_fraction": 0.5}
    now = present(val_fraction=0.5, seed=7, resume_override=True, validates=True)
    validated = [make_row(3, val_loss=0.5, val_accuracy=0.5)]
    state = make_state(config=config, history=validated)
    assert plan_resumption(state, SOURCE, now).state.best_epoch == 2


def test_the_best_by_test_images_is_forgotten_once_there_are_validation_images():
    state = make_state()
    assert plan_resumption(state, SOURCE, present(validates=True)).state.best_epoch == 0
    assert plan_resumption(state, SOURCE, present(validates=False)).state.best_epoch == 2


def test_the_best_of_other_weights_is_forgotten():
    config = make_state().config | {"ema_decay": 0.5}
    for which, best in (("raw", 2), ("ema", 0)):
        now = present(ema_decay=0.5, evaluate=which, resume_override=True)
        assert plan_resumption(make_state(config=config), SOURCE, now).state.best_epoch == best


def test_a_teacher_is_known_by_its_weights():
    config = make_state().config | {"teacher": "a.pth", "teacher_sha256": "1"}
    state = make_state(config=config)
    plan_resumption(state, SOURCE, present(teacher="elsewhere/a.pth", teacher_sha256="1"))
    with pytest.raises(UserError, match=r"the teacher b\.pth \(its weights are others\)"):
        plan_resumption(state, SOURCE, present(teacher="b.pth", teacher_sha256="2"))


@pytest.mark.parametrize(
    ("validates", "same_images", "fraction", "seen"),
    [(False, True, 0.1, False), (True, True, 0.1, False), (True, True, 0.2, True),
     (True, False, 0.1, True)],
)  # fmt: skip
def test_who_may_have_trained_on_validation_images(validates, same_images, fraction, seen):
    state = make_state(config=make_state().config | {"val_fraction": 0.1})
    now = present(same_images, validates=validates, val_fraction=fraction)
    assert may_have_seen(state, now) == seen


def test_room_is_made_and_what_counts_brought_along(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    save(pack(make_state(3)), old / LAST)
    save(pack(make_state(2)), old / BEST)
    save(pack(make_state(9, run_id="other")), new / LAST)
    plan = plan_resumption(load(old / LAST), old / LAST, present())
    said = []
    make_room(new, plan, old / BEST, said.append)
    assert [load(new / name).epoch for name in (LAST, BEST)] == [3, 2]
    assert [load(path).run_id for path in new.glob("before_*/*")] == ["other"]
    assert said == [f"moved the snapshots of an earlier run to {next(new.glob('before_*'))}"]

    make_room(
        new, plan_resumption(load(new / LAST), new / LAST, present()), new / BEST, said.append
    )
    assert len(said) == 1  # nothing more to move
    save(pack(make_state(5, history=[make_row(5)])), numbered(new, 5))
    make_room(new, plan, None, said.append)
    assert not numbered(new, 5).exists()  # of a later epoch: it will be made again


def test_a_disk_that_takes_no_snapshots_is_one_line(tmp_path):
    plan = plan_resumption(make_state(), tmp_path / "gone.pth", present())
    with pytest.raises(UserError, match=r"--snapshot_dir .* No such file"):
        make_room(tmp_path, plan, None, print)
