import hashlib
import io
import os
import pickle
import stat
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from states import make_state

from cifarnet.checkpoints import snapshots
from cifarnet.checkpoints.places import BEST, LAST, numbered
from cifarnet.checkpoints.snapshots import find_best, find_newest, load, move_aside, pack, prune
from cifarnet.checkpoints.state import COLUMNS, Row, TrainState
from cifarnet.core.errors import UserError


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
        "model", "optimizer", "scheduler", "scaler", "epoch", "best_accuracy", "history",
        "config", "random_state", "classes", "mean", "std", "run_id",
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
ROWS = st.builds(Row, **dict.fromkeys(COLUMNS, NUMBERS))


@given(
    history=st.lists(ROWS, max_size=3),
    config=st.dictionaries(st.text(), NUMBERS | st.booleans() | st.text()),
    classes=st.lists(st.text(), min_size=2),
    weights=st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    dataset=st.text(),
    epoch=st.integers(2, 10**6),
)
def test_any_state_comes_back(tmp_path, history, config, classes, weights, dataset, epoch):
    state = make_state(
        epoch,
        model={"weight": torch.tensor(weights)},
        history=history,
        config=config,
        classes=classes,
        dataset=dataset,
    )
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


def write_sealed(content: object, path: Path) -> None:
    """What a snapshot looks like from outside: `content`, saved by torch, and its checksum."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()[:-2] + (71).to_bytes(2, "little")
    path.write_bytes(archive + b"sha256:" + hashlib.sha256(archive).hexdigest().encode())


def spoil(path: Path, how: str) -> None:
    save(make_state(), path)
    content = path.read_bytes()
    fields = torch.load(path, weights_only=True)
    if how in ("missing", "directory"):
        path.unlink()
    if how == "directory":
        path.mkdir()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a snapshot")
    elif how == "code":
        torch.save({"model": Bomb()}, path)
    elif how == "sealed code":
        write_sealed({"model": Bomb()}, path)
    elif how == "bare pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif how == "weights alone":
        torch.save({"weight": torch.ones(3)}, path)
    elif how == "an earlier version":
        del fields["run_id"]
        write_sealed(fields, path)
    elif how == "a tensor":
        write_sealed(torch.ones(3), path)
    elif how == "wrong types":
        write_sealed(fields | {"epoch": "three"}, path)


KINDS = {
    "missing": "cannot be read",
    "directory": "cannot be read",
    "truncated": "checksum does not fit",
    "empty": "checksum does not fit",
    "text": "checksum does not fit",
    "code": "checksum does not fit",
    "sealed code": "holds more than data",
    "bare pickle": "checksum does not fit",
    "weights alone": "checksum does not fit",
    "an earlier version": "'run_id'",
    "a tensor": "no CIFARNet snapshot",
    "wrong types": "epoch is no int",
}


@pytest.mark.parametrize("how", KINDS)
def test_what_is_no_snapshot_is_refused_by_name_and_runs_nothing(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.pth"
    spoil(path, how)
    with pytest.raises(UserError, match=KINDS[how]) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": [1, 2]}, {"classes": ["a"]}, {"mean": ["a", "b", "c"]}, {"mean": []},
        {"std": [0.0, 1.0, 1.0]}, {"epoch": -3}, {"epoch": 0}, {"best_epoch": 9},
        {"mean": [float("nan")] * 3},
    ],
    ids=str,
)  # fmt: skip
def test_figures_that_no_run_writes_are_refused(tmp_path, wrong):
    save(make_state(**wrong), tmp_path / LAST)
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


def test_the_best_of_a_run_is_found_by_its_id(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()

    def best(epoch: int, source: Path = old / LAST) -> Path | None:
        return find_best(source, new, epoch, "first")

    assert best(7) is None
    save(make_state(7), old / BEST)
    assert best(6) is None  # of another epoch
    assert best(7) == old / BEST
    save(make_state(7, run_id="other"), new / BEST)
    assert best(7) == old / BEST
    save(make_state(7), new / BEST)
    assert best(7) == new / BEST
    save(make_state(9), numbered(old, 9))
    assert best(9, numbered(old, 9)) == numbered(old, 9)
    save(make_state(5), numbered(old, 5))
    assert best(5) == numbered(old, 5)
