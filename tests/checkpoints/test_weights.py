import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cifarnet.checkpoints import places, weights
from cifarnet.checkpoints.places import WEIGHTS_FILE as FILE
from cifarnet.checkpoints.places import find_weights
from cifarnet.checkpoints.weights import Weights, read_weights, write_weights
from cifarnet.core.errors import UserError, printable


def make_weights() -> Weights:
    return Weights(
        model={
            "conv": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
            "count": torch.tensor(7),
        },
        epoch=3,
        config={"lr": 0.1, "amp": True, "init": None},
        classes=["a", "ü\n"],
        mean=[0.1, 0.2, 0.3],
        std=[0.3, 0.2, 0.1],
        dataset="pictures",
        selected_by="not selected",
        accuracy=0.75,
        accuracy_from="somewhere",
        source="there",
    )


def test_other_programs_read_the_file(tmp_path):
    """By the library alone: every tensor, and the metadata as JSON."""
    kept = make_weights()
    write_weights(kept, tmp_path / FILE)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    tensors = load_file(tmp_path / FILE)
    assert tensors.keys() == kept.model.keys()
    assert all(torch.equal(tensors[name], kept.model[name]) for name in tensors)
    with safe_open(tmp_path / FILE, "np") as file:
        said = {name: json.loads(text) for name, text in file.metadata().items()}
    assert {
        name: said[name] for name in ("classes", "mean", "std", "config", "dataset", "accuracy")
    } == {
        name: getattr(kept, name)
        for name in ("classes", "mean", "std", "config", "dataset", "accuracy")
    }


def test_weights_come_back_as_they_were(tmp_path):
    kept = replace(make_weights(), accuracy=None)
    write_weights(kept, tmp_path / "some.safetensors")
    back = read_weights(str(tmp_path / "some.safetensors"))
    assert back.source == str(tmp_path / "some.safetensors")
    assert replace(back, model={}, source="") == replace(kept, model={}, source="")
    assert all(torch.equal(back.model[name], kept.model[name]) for name in kept.model)
    assert back.model["count"].shape == ()


def test_a_disk_that_fails_leaves_the_former_file(tmp_path, monkeypatch):
    write_weights(make_weights(), tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_weights(replace(make_weights(), epoch=9), tmp_path / FILE)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == before


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed_or_harmless(tmp_path, place, bit):
    path, kept = tmp_path / FILE, make_weights()
    write_weights(kept, path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        back = read_weights(str(path))
    except UserError as problem:
        assert str(path) in str(problem)
        return
    assert replace(back, model={}, source="") == replace(kept, model={}, source="")
    assert all(torch.equal(back.model[name], kept.model[name]) for name in kept.model)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "text",
        "a changed weight",
        "no metadata",
        "less metadata",
    ],
)
def test_what_export_did_not_write_is_refused_by_name(tmp_path, how):
    path = tmp_path / FILE
    write_weights(make_weights(), path)
    content = path.read_bytes()
    if how in ("truncated", "empty", "text"):
        path.write_bytes(
            {"truncated": content[:-9], "empty": b"", "text": b"no weights at all"}[how]
        )
    elif how == "a changed weight":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how in ("no metadata", "less metadata"):
        with safe_open(path, "pt") as file:
            metadata = {name: text for name, text in file.metadata().items() if name != "mean"}
        save_file({"weight": torch.ones(3)}, path, metadata if how == "less metadata" else None)
    with pytest.raises(UserError) as caught:
        read_weights(str(path))
    assert str(path) in str(caught.value)
    words = {
        "a changed weight": "checksum",
        "no metadata": "lacks",
        "less metadata": "'mean'",
    }
    assert words.get(how, "no safetensors") in str(caught.value)


@pytest.mark.parametrize(
    ("crafted", "words"),
    [
        ({"std": [0.3, 0.2, 0.0]}, "do not fit"), ({"std": [0.3, 0.2]}, "do not fit"),
        ({"classes": ["a", "a"]}, "do not fit"), ({"classes": ["a"]}, "do not fit"),
        ({"classes": "ab"}, "classes"), ({"epoch": "3"}, "epoch"), ({"epoch": True}, "epoch"),
        ({"epoch": 0}, "do not fit"), ({"epoch": 10**400}, "do not fit"),
        ({"mean": [1, float("nan"), 1]}, "mean"), ({"mean": [1, 10**400, 1]}, "mean"),
        ({"accuracy": float("nan")}, "accuracy"), ({"accuracy": 7.5}, "accuracy"),
        ({"config": []}, "config"), ({"config": {"lr": "fast"}}, "--lr 'fast'"),
        ({"dataset": None}, "dataset"), ({"selected_by": {}}, "selected_by"),
        ({"model": {"w": torch.tensor([1.0, float("inf")])}}, "not finite: w"),
    ],
    ids=str,
)  # fmt: skip
def test_metadata_of_the_wrong_kind_are_refused_though_the_checksum_fits(tmp_path, crafted, words):
    write_weights(replace(make_weights(), **crafted), tmp_path / FILE)
    with pytest.raises(UserError, match=words) as caught:
        read_weights(str(tmp_path / FILE))
    assert str(tmp_path / FILE) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "", "[" * 50_000, "9" * 5000, "\x1b"])
@pytest.mark.parametrize("name", ["config", "epoch"])
def test_metadata_that_are_no_json_are_refused(tmp_path, monkeypatch, name, text):
    write_weights(make_weights(), tmp_path / FILE)
    with safe_open(tmp_path / FILE, "pt") as file:
        metadata = file.metadata() | {name: text}
        model = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata["sha256"] = json.dumps(weights._checksum(model, metadata))
    save_file(model, tmp_path / FILE, metadata)
    with pytest.raises(UserError, match="is not usable"):
        read_weights(str(tmp_path / FILE))


@given(st.text())
def test_words_of_a_file_are_one_printable_line(tmp_path, text):
    words = dict.fromkeys(("dataset", "selected_by", "accuracy_from"), text)
    write_weights(replace(make_weights(), **words), tmp_path / FILE)
    back = read_weights(str(tmp_path / FILE))
    assert {getattr(back, name) for name in words} == {printable(text)}


def test_names_and_paths(tmp_path, monkeypatch):
    assert (
        Path(places.__file__).resolve().parents[2] / "results" == places.RESULTS
    )  # wherever one is
    monkeypatch.setattr(places, "RESULTS", tmp_path / "results")
    with pytest.raises(UserError, match=r"no weights 'hour'; .*results holds none; name a file"):
        find_weights("hour")
    for name in ("hour", "long"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / FILE).touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_weights("hour") == tmp_path / "results" / "hour" / FILE
    with pytest.raises(
        UserError, match=r"'huor'; did you mean hour\? known by name: hour, long; else"
    ):
        find_weights("huor")
    for strange in ("", ".", "nothing.safetensors", "a" * 5000, "two\nlines"):
        with pytest.raises(UserError) as caught:
            find_weights(strange)
        assert str(caught.value).isprintable()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / "elsewhere" / "hour").touch()
    assert find_weights("mine").resolve() == tmp_path / "elsewhere" / "mine"
    assert find_weights("hour") == tmp_path / "results" / "hour" / FILE
    assert find_weights("./hour").resolve() == tmp_path / "elsewhere" / "hour"
