import contextlib
import dataclasses
import io
import math
import os
import pickle
import stat
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.snapshots import make_row, make_snapshot, make_trained

from cifarnet.checkpoints.history import Row
from cifarnet.checkpoints.paths import BEST, LAST
from cifarnet.checkpoints.snapshots import (
    Snapshot,
    load_trained,
    pack,
    read_snapshot,
    write_snapshot,
)
from cifarnet.checkpoints.trained import FORMAT, write_weights
from cifarnet.core.errors import UserError, printable
from cifarnet.core.seal import PLACEHOLDER, seal
from cifarnet.core.text import composed


def save(snapshot: Snapshot, path: Path) -> None:
    write_snapshot(pack(snapshot), path)


def contents(snapshot: Snapshot) -> dict[str, Any]:
    """What is in the file of `snapshot`, by torch alone."""
    return torch.load(io.BytesIO(pack(snapshot)), weights_only=True)


def write_sealed(content: object, path: Path) -> None:
    """Saves `content` with torch, and adds the comment of the archive: a checksum that fits."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    comment = PLACEHOLDER.encode()
    archive = buffer.getvalue()[:-2] + len(comment).to_bytes(2, "little")
    path.write_bytes(seal(archive + comment))


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_snapshot(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def equal(a: Any, b: Any) -> bool:
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and equal(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# --- the file ---


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
KINDS_OF_COLUMNS = {int: st.integers(), float: NUMBERS, float | None: st.none() | NUMBERS}
ROWS = st.builds(Row, **{f.name: KINDS_OF_COLUMNS[f.type] for f in fields(Row)})


@given(
    rows=st.lists(ROWS, min_size=1, max_size=3),
    classes=st.lists(st.text().map(composed), min_size=2, unique=True).map(tuple),
    weights=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5),
    dataset=st.text().map(printable),
    epoch=st.integers(3, 10**6),
)
def test_any_snapshot_comes_back_as_it_was(tmp_path, rows, classes, weights, dataset, epoch):
    epochs = range(epoch - len(rows) + 1, epoch + 1)
    snapshot = make_snapshot(
        epoch,
        {"dataset": dataset},
        weights={"weight": torch.tensor(weights)},
        history=[replace(row, epoch=i) for row, i in zip(rows, epochs, strict=True)],
        classes=classes,
        source=str(tmp_path / LAST),
    )
    save(snapshot, tmp_path / LAST)
    assert equal(read_snapshot(tmp_path / LAST), snapshot)


def test_the_directory_is_flushed_after_the_renaming(tmp_path, monkeypatch):
    """Or a power loss could bring the former file back."""
    flushed = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append(stat.S_ISDIR(os.fstat(handle).st_mode))
    )
    save(make_snapshot(), tmp_path / LAST)
    assert flushed == [False, True]


def test_a_packed_snapshot_does_not_change_with_later_training(tmp_path):
    snapshot = make_snapshot()
    content = pack(snapshot)
    snapshot.model.weights["weight"].zero_()
    write_snapshot(content, tmp_path / LAST)
    assert read_snapshot(tmp_path / LAST).model.weights["weight"].tolist() == [0, 1, 2]


# --- damaged files, and files that somebody made ---


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed(tmp_path, place, bit):
    content = bytearray(pack(make_snapshot()))
    content[int(place * len(content))] ^= 1 << bit
    (tmp_path / LAST).write_bytes(content)
    assert "checksum does not match" in refused(tmp_path / LAST)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_what_is_not_a_snapshot_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, content = tmp_path / "some.pth", pack(make_snapshot())
    for wrong in (content[: len(content) // 2], b"", pickle.dumps(Bomb())):
        path.write_bytes(wrong)
        assert "checksum does not match" in refused(path)
    whole = contents(make_snapshot())
    for wrong, words in (
        ({"weights": Bomb()}, "contains code"),
        (torch.ones(3), "holds no fields"),
        ({name: whole[name] for name in ("format", "weights")}, "it lacks"),
        (whole | {"format": FORMAT - 1}, f"the format {FORMAT - 1} of another version"),
        ({name: value for name, value in whole.items() if name != "format"}, "the format None"),
    ):
        write_sealed(wrong, path)
        assert words in refused(path)
    assert [file.name for file in tmp_path.iterdir()] == ["some.pth"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": {"epoch": 4}}, {"comparable_after": 9}, {"comparable_after": -1},
        {"history": []}, {"history": [make_row(2)]}, {"history": [make_row(3), make_row(3)]},
        {"history": [make_row(-1), make_row(3)]},
    ],
    ids=str,
)  # fmt: skip
def test_a_history_that_no_run_writes_is_refused(tmp_path, wrong):
    save(make_snapshot(**wrong), tmp_path / LAST)
    assert "(its history is inconsistent" in refused(tmp_path / LAST)


@pytest.mark.parametrize("temperature", [0, -1, 1e9, math.nan, math.inf])
def test_a_temperature_that_no_run_fits_is_refused(tmp_path, temperature):
    save(make_snapshot(temperature=temperature), tmp_path / LAST)
    assert "is not usable (" in refused(tmp_path / LAST)


def test_a_snapshot_of_an_earlier_version_is_not_calibrated(tmp_path):
    content = contents(make_snapshot(temperature=2.0, calibrated_on="images"))
    del content["temperature"], content["calibrated_on"], content["held_out_sha256"]
    write_sealed(content, tmp_path / LAST)
    expected = make_snapshot(source=str(tmp_path / LAST), held_out_sha256="")
    assert equal(read_snapshot(tmp_path / LAST), expected)


@pytest.mark.parametrize("name", sorted(contents(make_snapshot()).keys() - {"format"}))
def test_a_field_of_the_wrong_type_is_refused_by_name(tmp_path, name):
    content = contents(make_snapshot())
    for wrong in (0.5 if name != "temperature" else "0.5", b"bytes", [[7]], {1: torch.ones(3)}):
        write_sealed(content | {name: wrong}, tmp_path / LAST)
        assert f"({name!r} is not of type" in refused(tmp_path / LAST)
    for fits_some_field in ("text", 7, None, True, [], {}, {"weight": "text"}, [[]], {"a": {}}):
        write_sealed(content | {name: fits_some_field}, tmp_path / LAST)
        with contextlib.suppress(UserError):
            read_snapshot(tmp_path / LAST)


@pytest.mark.parametrize("name", ["weights", "averaged"])
def test_weights_that_are_not_finite_are_refused(tmp_path, name):
    weights = {"fine": torch.ones(3), "spoilt": torch.tensor([1.0, float("nan")])}
    save(make_snapshot(**{name: weights}), tmp_path / LAST)
    assert "weights are not finite: spoilt" in refused(tmp_path / LAST)


# --- the trained model in it ---


@pytest.mark.parametrize(
    ("name", "val_fraction", "words"),
    [
        (LAST, 0.0, "last epoch; the test set was evaluated during the run"),
        (LAST, 0.1, "last epoch; chosen without test images"),
        (BEST, 0.0, "best by test accuracy, evaluated during the run"),
        (BEST, 0.1, "best by validation accuracy"),
    ],
)
def test_what_a_snapshot_says_of_its_model(tmp_path, name, val_fraction, words):
    def described(*rows: Row) -> tuple[str, float | None]:
        settings = {"val_fraction": val_fraction, "epochs": 3}
        save(make_snapshot(settings=settings, history=list(rows)), tmp_path / name)
        trained = read_snapshot(tmp_path / name).trained()
        assert trained.source == str(tmp_path / name)
        assert (trained.origin.accuracy_from == "not measured") == (trained.origin.accuracy is None)
        return trained.origin.selected_by, trained.origin.accuracy

    rows = make_row(2, test_accuracy=0.25), make_row(3, test_accuracy=0.75)
    assert described(*rows) == (words, 0.75)
    at_end = words.replace("during the run", "at the end only")
    assert described(make_row(2, test_accuracy=None), rows[1]) == (at_end, 0.75)
    never = words.replace("during the run", "never so far")
    assert described(make_row(3, test_accuracy=None)) == (never, None)


def test_a_run_that_changed_its_evaluation_names_the_images_of_the_newest_one(tmp_path):
    """With --resume_override, from validation images to test images."""
    history = [make_row(2, val_accuracy=0.9, test_accuracy=None), make_row(3, test_accuracy=0.5)]
    for name, words in ((BEST, "best by test accuracy"), (LAST, "last epoch; the test set was")):
        settings = {"val_fraction": 0.0, "epochs": 3}
        save(make_snapshot(settings=settings, history=history), tmp_path / name)
        origin = read_snapshot(tmp_path / name).trained().origin
        assert origin.selected_by.startswith(words)


# --- by name ---


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w.pth", r"w\.pth is refused: it is not a torch file"),
        ("w.safetensors", "not a safetensors file"),
        ("w.onnx", r"only predict\.py and evaluate\.py read an ONNX file"),
    ],
)
def test_the_kind_of_file_follows_from_its_name(tmp_path, name, words):
    path = tmp_path / name
    write_weights(make_trained(), path)
    if name == "w.safetensors":
        path.write_bytes(pack(make_snapshot()))
    with pytest.raises(UserError, match=words):
        load_trained(str(path))


def test_a_temperature_belongs_to_the_weights_that_it_was_fitted_for():
    averaged = {"module.weight": torch.ones(3)}
    calibrated = {"temperature": 2.0, "calibrated_on": "images"}
    snapshot = make_snapshot(settings={"ema_decay": 0.5}, averaged=averaged, **calibrated)
    evaluated, other = snapshot.trained("raw"), snapshot.trained("ema")
    assert (evaluated.temperature, evaluated.calibrated_on) == (2.0, "images")
    assert (other.temperature, other.calibrated_on) == (1.0, "")
