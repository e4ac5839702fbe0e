import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from support.snapshots import make_trained

from cifarnet.checkpoints.paths import WEIGHTS_FILE as FILE
from cifarnet.checkpoints.trained import (
    check_classes,
    fingerprint,
    is_half,
    read_weights,
    write_weights,
)
from cifarnet.core.errors import UserError
from cifarnet.core.seal import PLACEHOLDER, seal
from cifarnet.core.text import composed
from cifarnet.networks.build import build_model
from cifarnet.settings.network import NetworkSettings

WEIGHTS = {
    "conv": torch.arange(96.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "count": torch.tensor(7),
}
SMALL = NetworkSettings(width=0.1)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(path, "some name")
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def rewrite(path: Path, **changes: str) -> None:
    """Changes metadata of a weights file; its checksum fits again."""
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **changes, "checksum": PLACEHOLDER}
    content = safetensors.torch.save(safetensors.torch.load_file(path), metadata)
    path.write_bytes(seal(content))


# --- the file ---


@given(
    st.lists(st.text().map(composed), min_size=2, max_size=4, unique=True).map(tuple),
    st.none() | st.floats(0, 1),
    st.integers(1, 10**6),
)
def test_a_model_comes_back_as_it_was(tmp_path, classes, accuracy, epoch):
    origin = {"accuracy": accuracy, "epoch": epoch}
    model = make_trained(WEIGHTS, {"lr": 0.3}, origin, classes=classes, network=SMALL)
    write_weights(model, tmp_path / FILE)
    back = read_weights(tmp_path / FILE, "some name")
    assert all(torch.equal(back.weights[name], value) for name, value in WEIGHTS.items())
    expected = dataclasses.replace(model, weights={}, source="some name")
    assert dataclasses.replace(back, weights={}) == expected


# --- damaged files, and files that somebody made ---


@given(st.sampled_from(["length", "header", "tensors"]), st.floats(0, 1), st.integers(0, 7))
def test_a_changed_bit_is_refused_wherever_it_lies(tmp_path, region, place, bit):
    write_weights(make_trained(WEIGHTS), tmp_path / FILE)
    content = bytearray((tmp_path / FILE).read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    start, end = {
        "length": (0, 8), "header": (8, header_end), "tensors": (header_end, len(content))
    }[region]  # fmt: skip
    content[min(end - 1, start + int(place * (end - start)))] ^= 1 << bit
    (tmp_path / FILE).write_bytes(content)
    words = refused(tmp_path / FILE)
    if region == "tensors":  # the library alone notices nothing
        assert "is damaged: its checksum does not match" in words


def test_half_the_size_is_the_model_rounded_to_float16(tmp_path):
    thirds = {
        name: value / 3 if value.is_floating_point() else value for name, value in WEIGHTS.items()
    }
    model, path = make_trained(thirds), tmp_path / FILE
    write_weights(model, path, half=True)
    half = read_weights(path, FILE)
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    for name, value in model.weights.items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(half.weights[name], rounded)
        assert half.weights[name].dtype == value.dtype
        assert stored[name] == (torch.float16 if value.is_floating_point() else value.dtype)
    assert half.sha256 == fingerprint(half.weights) != model.sha256
    measured = f"{model.origin.accuracy_from}, before the rounding to 16 bits"
    changes = {"origin": dataclasses.replace(model.origin, accuracy_from=measured)}
    expected = dataclasses.replace(model, weights={}, sha256=half.sha256, source=FILE, **changes)
    assert dataclasses.replace(half, weights={}) == expected
    for again in (True, False):  # as any model; rounding it again changes nothing
        write_weights(half, tmp_path / "again", half=again)
        read = read_weights(tmp_path / "again", FILE)
        assert (read.sha256, read.origin) == (half.sha256, half.origin)
        assert is_half(tmp_path / "again") is again


def test_a_weight_too_large_for_float16_is_refused(tmp_path):
    model, path = make_trained(), tmp_path / FILE
    name = next(iter(model.weights))
    weights = model.weights | {name: torch.full_like(model.weights[name], 1e5)}
    write_weights(dataclasses.replace(model, weights=weights), path, half=True)
    with pytest.raises(UserError, match=f"its weights are not finite: {name}"):
        read_weights(path, FILE)


def test_other_files_are_refused(tmp_path):
    write_weights(make_trained(), tmp_path / FILE)
    whole = (tmp_path / FILE).read_bytes()
    for content in (b"", b"no weights at all", whole[:-9]):
        (tmp_path / FILE).write_bytes(content)
        assert "not a safetensors file" in refused(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(whole)
    with safe_open(tmp_path / FILE, "pt") as file:
        metadata = file.metadata()
    less = {name: text for name, text in metadata.items() if name != "mean"}
    for kept, words in ((None, "not a safetensors file of export.py"), (less, "'mean'")):
        safetensors.torch.save_file({"weight": torch.ones(3)}, tmp_path / FILE, kept)
        assert words in refused(tmp_path / FILE)


@pytest.mark.parametrize(
    ("crafted", "words"),
    [
        ({"std": (0.3, 0.2, 0.0)}, "inconsistent"), ({"std": (0.3, 0.2)}, "inconsistent"),
        ({"classes": ("a", "a")}, "inconsistent"), ({"classes": ("a",)}, "inconsistent"),
        ({"classes": (1, 2)}, "classes"), ({"mean": (1, float("nan"), 1)}, "mean"),
        ({"mean": (1, 10**400, 1)}, "mean"), ({"image_size": 8}, "inconsistent"),
        ({"sha256": "0" * 64}, "belong to another model"),
        ({"weights": {"w": torch.tensor([1.0, float("inf")])}}, "not finite: w"),
        ({"origin": {"epoch": True}}, "origin"), ({"origin": {"epoch": 0}}, "inconsistent"),
        ({"origin": {"epoch": 10**400}}, "inconsistent"),
        ({"origin": {"accuracy": 7.5}}, "inconsistent"),
        ({"origin": {"weights": "both"}}, "inconsistent"),
        ({"origin": {"dataset": None}}, "origin"),
        ({"origin": {"settings": {"lr": "fast"}}}, "--lr 'fast'"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_fields_are_refused_though_the_checksum_fits(tmp_path, crafted, words):
    write_weights(make_trained(**crafted), tmp_path / FILE)
    assert words in refused(tmp_path / FILE)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        *(("origin", text, "is not usable") for text in ("{", "", "[" * 50_000, "9" * 5000)),
        *(("format", text, f"the format {text} of another version") for text in ("1", "3")),
        ("network", '{"layers": 3}', "unknown setting, layers"),
        ("network", '{"network": "vgg"}', "--network 'vgg' is not one of"),
        ("network", '{"width": [1]}', "--width"),
    ],
    ids=lambda text: text[:20],
)
def test_metadata_that_export_does_not_write_are_refused(tmp_path, name, text, words):
    write_weights(make_trained(), tmp_path / FILE)
    rewrite(tmp_path / FILE, **{name: text})
    assert words in refused(tmp_path / FILE)


# --- the model ---


def test_a_model_builds_its_network():
    torch.manual_seed(0)
    trained = build_model(SMALL, 2)
    model = make_trained(trained.state_dict(), network=SMALL)
    network = model.build()
    images = torch.randn(2, 3, 32, 32)
    assert not network.training
    assert torch.equal(network(images), trained.eval()(images))
    assert model.parameters == sum(p.numel() for p in trained.parameters())


def test_counting_parameters_draws_no_random_numbers():
    state = torch.get_rng_state()
    assert make_trained(classes=tuple("0123456789")).parameters == 174_762
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_another_network_are_refused():
    weights = build_model(SMALL, 2).state_dict()
    name = "c1.conv.weight"
    for changed in (
        {},
        weights | {"weight": torch.ones(3)},
        weights | {name: weights[name][:, :2]},
        weights | {name: weights[name].to(torch.complex64)},
        {f"module.{key}": value for key, value in weights.items()},
    ):
        with pytest.raises(UserError, match="do not fit this CIFARNet"):
            make_trained(changed, network=SMALL).build()


def test_a_fingerprint_is_of_names_and_values():
    rows = {name: value.contiguous() for name, value in reversed(WEIGHTS.items())}
    changed = WEIGHTS | {"count": torch.tensor(8)}
    renamed = {"conv": WEIGHTS["conv"], "counts": WEIGHTS["count"]}
    assert fingerprint(rows) == fingerprint(WEIGHTS)
    assert len({fingerprint(each) for each in (WEIGHTS, changed, renamed)}) == 3


# --- classes ---


def test_the_first_class_names_that_differ_are_shown():
    check_classes(list("abcde"), tuple("abcde"))
    with pytest.raises(UserError) as caught:
        check_classes("abcdefgh", "abcdxf")
    words = "knows 8 (..., c, d, e, ...); the data set has 6 (..., c, d, x, ...)"
    assert words in str(caught.value)
