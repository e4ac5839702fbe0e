from dataclasses import replace
from pathlib import Path

import pytest
import torch
from states import make_row, make_state

from cifarnet.checkpoints.places import BEST, LAST
from cifarnet.checkpoints.state import Progress, check_classes, weights_of
from cifarnet.core.errors import UserError


def test_the_first_of_the_highest_accuracies_is_the_best():
    progress = Progress()
    assert (progress.epoch, progress.best_epoch) == (0, 0)
    found = []
    for epoch, accuracy in enumerate((0.0, None, 0.5, 0.5, 0.4), 1):
        progress.add(make_row(epoch, test_accuracy=accuracy))
        found.append((progress.epoch, progress.best_epoch, progress.best_accuracy))
    assert found == [(1, 1, 0.0), (2, 1, 0.0), (3, 3, 0.5), (4, 3, 0.5), (5, 3, 0.5)]


def test_validation_images_choose_the_best():
    progress = Progress()
    progress.add(make_row(1, val_accuracy=0.6, test_accuracy=0.1))
    progress.add(make_row(2, val_accuracy=0.5, test_accuracy=0.9))
    assert (progress.best_epoch, progress.best_accuracy) == (1, 0.6)


def test_each_run_has_an_id_of_its_own():
    assert Progress().run_id != Progress().run_id


def test_other_classes_are_named():
    check_classes(["a", "b"], ("a", "b"))
    with pytest.raises(UserError, match=r"knows 2 \(a, b\); the data set has 3 \(x, y, z\)"):
        check_classes(["a", "b"], ("x", "y", "z"))


def test_classes_that_differ_further_on_are_named():
    known, classes = list("abcdefgh"), list("abcdxfgh")
    with pytest.raises(UserError, match=r"8 \(\.\.\., c, d, e, \.\.\.\); .* 8 \(\.\.\., c, d, x, "):
        check_classes(known, classes)


@pytest.mark.parametrize(
    ("name", "val_fraction", "words"),
    [
        (LAST, 0.0, "not selected; the test set was evaluated during the run"),
        (LAST, 0.1, "chosen without test images"),
        (BEST, 0.0, "best by test accuracy, evaluated during the run"),
        (BEST, 0.1, "best by validation accuracy"),
    ],
)
def test_what_a_snapshot_says_of_its_network(tmp_path, name, val_fraction, words):
    rows = [make_row(2, test_accuracy=0.25), make_row(3, test_accuracy=0.75)]
    state = make_state(3, history=rows, config={"val_fraction": val_fraction, "epochs": 3})
    trained = weights_of(state, tmp_path / name)
    assert trained.selected_by == words
    assert trained.accuracy == 0.75
    assert trained.source == str(tmp_path / name)
    assert trained.model is state.model
    assert weights_of(replace(state, epoch=4), tmp_path / name).accuracy is None

    rows = [make_row(2, test_accuracy=None), make_row(3)]
    at_end = weights_of(replace(state, history=rows), tmp_path / name)
    assert at_end.selected_by == words.replace("during the run", "at the end only")
    unmeasured = replace(state, history=[make_row(3, test_accuracy=None)])
    assert weights_of(unmeasured, tmp_path / name).accuracy is None
    never = words.replace("during the run", "never so far")
    assert weights_of(unmeasured, tmp_path / name).selected_by == never


def test_the_weights_that_count_are_those_that_the_run_evaluates():
    averaged = {"n_averaged": torch.tensor(5), "module.weight": torch.zeros(3)}
    state = make_state(3, averaged=averaged)
    ema = replace(state, config={"ema_decay": 0.9, "evaluate": "ema"})
    for kept, which, zero, accuracy in (
        (state, None, False, 0.5), (ema, None, True, 0.5),
        (state, "ema", True, None), (ema, "raw", False, None),
    ):  # fmt: skip
        trained = weights_of(kept, Path(LAST), which)
        assert list(trained.model) == ["weight"]
        assert (trained.model["weight"] == 0).all() == zero
        assert trained.config["evaluate"] == ("ema" if zero else "raw")
        assert trained.accuracy == accuracy
    with pytest.raises(UserError, match="no averaged weights"):
        weights_of(make_state(), Path(LAST), "ema")
