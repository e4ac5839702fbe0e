import os
import pickle
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarnet.checkpoints import snapshots
from cifarnet.checkpoints.snapshots import (
    BEST,
    LAST,
    find_best,
    find_newest,
    load,
    move_aside,
    numbered,
    pack,
    prune,
)
from cifarnet.checkpoints.state import HISTORY_KEYS, TrainState, weights_of
from cifarnet.core.errors import UserError


def make_state(epoch: int = 3) -> TrainState:
    return TrainState(
        model={"weight": torch.arange(3.0)},
        optimizer={
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        scheduler={"step": 30, "total_steps": 100},
        scaler={},
        epoch=epoch,
        best_accuracy=0.75,
        best_epoch=min(2, epoch),
        history=[dict.fromkeys(HISTORY_KEYS, 0.5) | {"epoch": 1, "val_loss": None}],
        config={"epochs": 10, "resume": None, "amp": True},
        random_state={"cpu": torch.get_rng_state(), "cuda": []},
        classes=["a", "ü"],
        mean=[0.1, 0.2, 0.3],
        std=[0.1, 0.2, 0.3],
        dataset="pictures",
    )


def save(state: TrainState, path) -> None:
    snapshots.save(pack(state), path)


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_snapshot_comes_back_as_it_was(tmp_path):
    state = make_state()
    save(state, tmp_path / LAST)
    assert [p.name for p in tmp_path.iterdir()] == [LAST]
    back = load(tmp_path / LAST)
    assert all(equal(getattr(back, f.name), getattr(state, f.name)) for f in fields(TrainState))
    raw = torch.load(tmp_path / LAST, weights_only=True)
    assert set(raw) >= {
        "model", "optimizer", "scheduler", "scaler", "epoch", "best_accuracy", "history", "config", "random_state",
        "classes", "mean", "std",
    }  # fmt: skip


def test_a_disk_that_fails_leaves_the_former_snapshot(tmp_path, monkeypatch):
    save(make_state(1), tmp_path / LAST)

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save(make_state(2), tmp_path / LAST)
    assert load(tmp_path / LAST).epoch == 1
    assert [p.name for p in tmp_path.iterdir()] == [LAST]


def test_the_directory_is_flushed_after_the_renaming(tmp_path, monkeypatch):
    """Or a power loss could bring the former file back."""
    flushed = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append(stat.S_ISDIR(os.fstat(handle).st_mode))
    )
    save(make_state(1), tmp_path / LAST)
    assert flushed == [False, True]


NUMBERS = st.none() | st.integers() | st.floats(allow_nan=False)


@given(
    history=st.lists(st.fixed_dictionaries(dict.fromkeys(HISTORY_KEYS, NUMBERS)), max_size=3),
    config=st.dictionaries(st.text(), NUMBERS | st.booleans() | st.text()),
    classes=st.lists(st.text(), min_size=2),
    weights=st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    dataset=st.text(),
    epoch=st.integers(2, 10**6),
)
def test_any_state_comes_back(tmp_path, history, config, classes, weights, dataset, epoch):
    changes = {
        "history": history,
        "config": config,
        "classes": classes,
        "dataset": dataset,
        "epoch": epoch,
    }
    state = replace(make_state(), model={"weight": torch.tensor(weights)}, **changes)
    save(state, tmp_path / LAST)
    assert equal(vars(load(tmp_path / LAST)), vars(state))


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed_or_harmless(tmp_path, place, bit):
    content = bytearray(pack(make_state()))
    content[int(place * len(content))] ^= 1 << bit
    (tmp_path / LAST).write_bytes(content)
    try:
        assert equal(vars(load(tmp_path / LAST)), vars(make_state()))
    except UserError as problem:
        assert str(tmp_path / LAST) in str(problem)


def test_a_changed_weight_is_noticed(tmp_path):
    content = pack(make_state())
    ones = torch.ones(3).numpy().tobytes()
    assert content.count(ones) == 1
    (tmp_path / LAST).write_bytes(
        content.replace(ones, torch.tensor([1.0, 1.0, 2.0]).numpy().tobytes())
    )
    torch.load(tmp_path / LAST, weights_only=True)  # alone, it notices nothing
    with pytest.raises(UserError, match="checksum does not fit"):
        load(tmp_path / LAST)


def test_a_snapshot_without_a_checksum_is_read(tmp_path):
    """Of an earlier version, or edited and saved again by hand."""
    torch.save(vars(make_state(7)), tmp_path / LAST)
    assert load(tmp_path / LAST).epoch == 7


def test_the_newest_numbered_ones_are_kept(tmp_path):
    for epoch in (9998, 9999, 10000, 10001):
        numbered(tmp_path, epoch).touch()
    for path in (tmp_path / LAST, tmp_path / BEST, tmp_path / "snapshot_epoch_old.pth"):
        path.touch()
    prune(tmp_path, 0)
    assert len(names(tmp_path)) == 7
    prune(tmp_path, 2)
    assert names(tmp_path) == [
        BEST,
        LAST,
        "snapshot_epoch_10000.pth",
        "snapshot_epoch_10001.pth",
        "snapshot_epoch_old.pth",
    ]


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def spoil(path, how):
    if how == "missing":
        return
    if how == "directory":
        path.mkdir()
        return
    save(make_state(), path)
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a snapshot")
    elif how == "crafted":
        torch.save({"model": Bomb()}, path)
    elif how == "bare pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif how == "weights alone":
        torch.save({"weight": torch.ones(3)}, path)
    elif how == "a tensor":
        torch.save(torch.ones(3), path)
    elif how == "wrong types":
        fields = torch.load(path, weights_only=True)
        torch.save(fields | {"epoch": "three"}, path)


KINDS = ["missing", "directory", "truncated", "empty", "text", "crafted", "bare pickle", "weights alone", "a tensor",
         "wrong types"]  # fmt: skip


@pytest.mark.parametrize("how", KINDS)
def test_what_is_no_snapshot_is_refused_by_name_and_runs_nothing(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.pth"
    spoil(path, how)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()
    if how == "crafted":
        assert "holds code" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": [1, 2]}, {"classes": ["a"]}, {"mean": ["a", "b", "c"]}, {"mean": []}, {"std": [0.0, 1.0, 1.0]},
        {"history": [{}]}, {"history": [1]}, {"epoch": -3}, {"epoch": 0}, {"best_epoch": 9},
        {"mean": [float("nan")] * 3},
    ],
    ids=str,
)  # fmt: skip
def test_figures_that_no_run_writes_are_refused(tmp_path, wrong):
    save(TrainState(**{**make_state().__dict__, **wrong}), tmp_path / LAST)
    with pytest.raises(UserError, match="do not fit together"):
        load(tmp_path / LAST)


def test_the_newest_intact_snapshot_is_found(tmp_path):
    assert find_newest(tmp_path) == (None, [])
    for epoch in (5, 10, 15):
        save(make_state(epoch), numbered(tmp_path, epoch))
    save(make_state(17), tmp_path / LAST)
    assert find_newest(tmp_path) == (tmp_path / LAST, [])
    spoil(tmp_path / LAST, "truncated")
    spoil(numbered(tmp_path, 15), "text")
    newest, passed_over = find_newest(tmp_path)
    assert newest == numbered(tmp_path, 10)
    assert [LAST in why or "0015" in why for why in passed_over] == [True, True]
    save(make_state(12), tmp_path / BEST)
    assert find_newest(tmp_path)[0] == numbered(tmp_path, 10)
    for epoch in (5, 10):
        spoil(numbered(tmp_path, epoch), "text")
    assert find_newest(tmp_path)[0] == tmp_path / BEST
    for path in (tmp_path / LAST, *(numbered(tmp_path, epoch) for epoch in (5, 10, 15))):
        path.unlink()
    assert find_newest(tmp_path) == (None, [])


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_new_run_moves_all_of_an_older_ones_snapshots(tmp_path):
    for path in (numbered(tmp_path, 5), tmp_path / LAST, tmp_path / BEST):
        save(make_state(5), path)
    (tmp_path / "mine.pth").write_text("not of a run")
    folder = move_aside(tmp_path, 0)
    assert names(folder) == [BEST, LAST, "snapshot_epoch_0005.pth"]
    assert names(tmp_path) == [folder.name, "mine.pth"]
    assert move_aside(tmp_path, 0) is None
    save(make_state(5), tmp_path / LAST)
    assert move_aside(tmp_path, 0) != folder  # within the same second


def test_going_back_moves_what_came_later(tmp_path):
    for epoch in (5, 10, 15):
        save(make_state(epoch), numbered(tmp_path, epoch))
    save(make_state(15), tmp_path / LAST)
    save(make_state(7), tmp_path / BEST)
    assert names(move_aside(tmp_path, 10, 7)) == [LAST, "snapshot_epoch_0015.pth"]
    assert names(tmp_path)[1:] == [BEST, "snapshot_epoch_0005.pth", "snapshot_epoch_0010.pth"]


def test_the_best_comes_along(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    rows = [
        dict.fromkeys(HISTORY_KEYS, 0.5) | {"epoch": epoch, "train_loss": 1 / epoch}
        for epoch in range(1, 10)
    ]

    def state(epoch: int) -> TrainState:
        return replace(make_state(epoch), history=rows[:epoch])

    assert find_best(old / LAST, new, 7, rows) is None
    save(state(7), old / BEST)
    assert find_best(old / LAST, new, 6, rows) is None  # another epoch's
    assert find_best(old / LAST, new, 7, rows) == old / BEST
    save(state(6), new / BEST)
    assert find_best(old / LAST, new, 7, rows) == old / BEST
    other_run = [*rows[:6], rows[6] | {"train_loss": 0.2}]
    save(replace(state(7), history=other_run), new / BEST)
    assert find_best(old / LAST, new, 7, rows) == old / BEST
    save(state(7), new / BEST)
    assert find_best(old / LAST, new, 7, rows) == new / BEST
    save(state(9), numbered(old, 9))
    assert find_best(numbered(old, 9), new, 9, rows) == numbered(old, 9)
    save(state(5), numbered(old, 5))
    assert find_best(old / LAST, new, 5, rows) == numbered(old, 5)


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
    row = dict.fromkeys(HISTORY_KEYS, 0.5)
    rows = [row | {"epoch": 2, "test_accuracy": 0.25}, row | {"epoch": 3, "test_accuracy": 0.75}]
    state = replace(make_state(3), history=rows, config={"val_fraction": val_fraction, "epochs": 3})
    trained = weights_of(state, tmp_path / name)
    assert trained.selected_by == words
    assert trained.accuracy == 0.75
    assert trained.source == str(tmp_path / name)
    rows[0]["test_accuracy"] = None
    assert weights_of(state, tmp_path / name).selected_by == words.replace(
        "during the run", "at the end only"
    )
    assert trained.model is state.model
    assert weights_of(replace(state, epoch=4), tmp_path / name).accuracy is None
    unmeasured = replace(state, history=[rows[0], rows[1] | {"test_accuracy": None}])
    assert weights_of(unmeasured, tmp_path / name).accuracy is None
    assert weights_of(unmeasured, tmp_path / name).selected_by == words.replace(
        "during the run", "never so far"
    )


def test_the_weights_that_count_are_those_that_the_run_evaluates():
    row = dict.fromkeys(HISTORY_KEYS, 0.5) | {"epoch": 3}
    averaged = {"n_averaged": torch.tensor(5), "module.weight": torch.zeros(3)}
    state = replace(make_state(3), history=[row], averaged=averaged)
    ema = replace(state, config={"ema_decay": 0.9, "evaluate": "ema"})
    for kept, which, zero, accuracy in (
        (state, None, False, 0.5), (ema, None, True, 0.5), (state, "ema", True, None), (ema, "raw", False, None),
    ):  # fmt: skip
        trained = weights_of(kept, Path(LAST), which)
        assert list(trained.model) == ["weight"]
        assert (trained.model["weight"] == 0).all() == zero
        assert trained.config["evaluate"] == ("ema" if zero else "raw")
        assert trained.accuracy == accuracy
    with pytest.raises(UserError, match="no averaged weights"):
        weights_of(make_state(), Path(LAST), "ema")
