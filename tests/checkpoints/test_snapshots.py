import hashlib
import io
import os
import pickle
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from states import make_row, make_state

from cifarnet.checkpoints import snapshots
from cifarnet.checkpoints.places import BEST, LAST, numbered
from cifarnet.checkpoints.snapshots import find_best, find_newest, load, move_aside, pack, prune
from cifarnet.checkpoints.state import Row, TrainState
from cifarnet.core.errors import UserError, printable
from cifarnet.settings import FLAGS


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


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
KINDS_OF_COLUMNS = {int: st.integers(), float: NUMBERS, float | None: st.none() | NUMBERS}
ROWS = st.builds(Row, **{f.name: KINDS_OF_COLUMNS[f.type] for f in fields(Row)})


@given(
    history=st.lists(ROWS, min_size=1, max_size=3),
    config=st.dictionaries(
        st.text().filter(lambda name: name not in FLAGS), NUMBERS | st.booleans() | st.text()
    ),
    classes=st.lists(st.text(), min_size=2, unique=True),
    weights=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5),
    dataset=st.text().map(printable),
    epoch=st.integers(3, 10**6),
)
def test_any_state_comes_back(tmp_path, history, config, classes, weights, dataset, epoch):
    epochs = range(epoch - len(history) + 1, epoch + 1)
    state = make_state(
        epoch,
        model={"weight": torch.tensor(weights)},
        history=[replace(row, epoch=i) for row, i in zip(history, epochs, strict=True)],
        config=make_state().config | config,
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
    elif how == "cut off":
        write_sealed({name: fields[name] for name in ("model", "epoch")}, path)


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
    "a tensor": "holds no fields",
    "cut off": "it lacks",
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
        {"classes": ["a"]}, {"classes": ["a", "a"]}, {"mean": []}, {"std": [0.0, 1.0, 1.0]},
        {"epoch": -3}, {"epoch": 0}, {"epoch": 10**400}, {"best_epoch": 9}, {"best_epoch": -1},
        {"best_accuracy": 1.5}, {"history": []}, {"history": [make_row(2)]},
        {"history": [make_row(3), make_row(3)]}, {"history": [make_row(0), make_row(3)]},
    ],
    ids=str,
)  # fmt: skip
def test_figures_that_no_run_writes_are_refused(tmp_path, wrong):
    save(make_state(**wrong), tmp_path / LAST)
    with pytest.raises(UserError, match=r"is not usable \(its (figures|history) do"):
        load(tmp_path / LAST)


ODD = ["text", 7, None, 0.5, True, [], {}, {"weight": "text"}, {1: torch.ones(3)}, [[]], {"a": {}}]
FITTING = {"scheduler": [{}], "scaler": [{}], "averaged": [{}], "model": [{}], "history": [[]]}
FITTING |= {"optimizer": [{}, {"weight": "text"}, {1: torch.ones(3)}, {"a": {}}]}
FITTING |= {"random_state": [{}], "config": [], "classes": [[]], "mean": [[]], "std": [[]]}
FITTING |= {"run_id": ["text"], "dataset": ["text"], "epoch": [7], "best_epoch": [7]}
FITTING |= {"best_accuracy": [7, 0.5]}


@pytest.mark.parametrize("name", [field.name for field in fields(TrainState)])
def test_a_field_of_the_wrong_type_is_refused_by_name(tmp_path, name):
    content = torch.load(io.BytesIO(pack(make_state())), weights_only=True)
    for odd in ODD:
        write_sealed(content | {name: odd}, tmp_path / LAST)
        fitting = any(type(odd) is type(each) and str(odd) == str(each) for each in FITTING[name])
        if not fitting:
            with pytest.raises(UserError, match=rf"is not usable \(({name} is no|it lacks|--)"):
                load(tmp_path / LAST)


@pytest.mark.parametrize("column", [field.name for field in fields(Row)])
def test_a_column_of_the_wrong_type_is_refused(tmp_path, column):
    for odd in ("text", True, float("nan"), float("inf"), [], torch.ones(1)):
        with pytest.raises(UserError, match="history is no"):
            save(make_state(history=[replace(make_row(3), **{column: odd})]), tmp_path / LAST)
            load(tmp_path / LAST)


@pytest.mark.parametrize("name", ["computed_on", "world_size", "teacher_sha256", "lr", "epochs"])
def test_a_setting_of_the_wrong_type_is_refused(tmp_path, name):
    state = make_state()
    for odd in ([], float("nan"), b"bytes"):
        save(replace(state, config=state.config | {name: odd}), tmp_path / LAST)
        with pytest.raises(UserError, match=name):
            load(tmp_path / LAST)


ODD_TENSORS = {
    "text": "1.0",
    "sparse": torch.ones(3).to_sparse(),
    "expanded": torch.ones(1).expand(3),
    "huge": torch.ones(1).expand(2**40),
    "without values": torch.ones(3, device="meta"),
    "nested": [torch.ones(2), torch.ones(3)],
    "a parameter": torch.nn.Parameter(torch.ones(3)),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("how", ODD_TENSORS)
@pytest.mark.parametrize("name", ["model", "averaged", "random_state"])
def test_an_odd_tensor_is_refused(tmp_path, name, how):
    odd = ODD_TENSORS[how]
    if how == "nested":
        if name == "random_state":
            return  # a list of tensors is what it holds of several devices
        odd = torch.nested.nested_tensor(odd)
    save(make_state(**{name: {"weight": odd}}), tmp_path / LAST)
    with pytest.raises(UserError, match=rf"{name} is no dict|more than data"):
        load(tmp_path / LAST)


@pytest.mark.parametrize("name", ["model", "averaged"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, name, value):
    weights = {"fine": torch.ones(3), "count": torch.tensor(2), "spoilt": torch.ones(3)}
    weights["spoilt"][1] = value
    save(make_state(**{name: weights}), tmp_path / LAST)
    with pytest.raises(UserError, match="weights are not finite: spoilt"):
        load(tmp_path / LAST)


def test_the_data_sets_name_is_one_printable_line(tmp_path):
    save(make_state(dataset="a\n12:00:00 forged\x1b[2J"), tmp_path / LAST)
    assert load(tmp_path / LAST).dataset == r"a\n12:00:00 forged\x1b[2J"


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
    newest, said = find_newest(tmp_path)
    assert (newest, len(said)) == (tmp_path / BEST, 1)
    assert "last.pth" in said[0]
    (tmp_path / BEST).unlink()
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
