"""ONNX files as classifiers, and which are refused."""

import hashlib
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.random_models import CLASSES, noise, random_model

from cifarnet.core.errors import UserError
from cifarnet.core.seal import PLACEHOLDER, seal
from cifarnet.export.onnx import write_onnx
from cifarnet.inference.classifier import Classifier, TorchClassifier
from cifarnet.inference.onnx import read_onnx


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(TorchClassifier(random_model()), path)
    return path


def test_a_file_is_a_classifier(exported):
    read, model = read_onnx(exported, "named so"), random_model()
    assert isinstance(read, Classifier)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    logits, shares = session.run(["logits", "probabilities"], {"image": noise(3).numpy()})
    assert torch.equal(read.logits(noise(3)), torch.from_numpy(logits))
    torch.testing.assert_close(read(noise(3)), torch.from_numpy(shares))
    assert (read.classes, read.image_size, read.source) == (CLASSES, 32, "named so")
    for name in ("network", "mean", "std", "origin"):
        assert getattr(read.info, name) == getattr(model, name)
    assert read.info.sha256 == hashlib.sha256(exported.read_bytes()).hexdigest()


# --- what is refused ---


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_onnx(path, "it")
    assert str(path) in str(caught.value)
    return str(caught.value)


@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(exported, tmp_path, share):
    content = exported.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated, damaged, or of another program" in refused(path)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_is_refused(exported, tmp_path, share, change):
    content = bytearray(exported.read_bytes())
    content[int(share * len(content))] ^= change
    path = tmp_path / "changed.onnx"
    path.write_bytes(content)
    assert "truncated, damaged, or of another program" in refused(path)


def test_a_file_of_another_program_is_refused(exported, tmp_path):
    model = onnx.load(exported)
    model.producer_name = "another"
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    assert "of another program; use an .onnx file that export.py wrote" in refused(path)
    assert "cannot be read" in refused(tmp_path / "missing.onnx")
    assert "cannot be read" in refused(tmp_path)


def foreign(how: str, exported: Path) -> onnx.ModelProto:
    """A file that fits its checksum, as somebody may make one."""
    model = onnx.load(exported)
    metadata = {entry.key: entry for entry in model.metadata_props}
    image, logits = model.graph.input[0].type.tensor_type, model.graph.output[0]
    if how == "no classes":
        model.metadata_props.remove(metadata["classes"])
    elif how == "other classes":
        metadata["classes"].value = '["a", "b"]'
    elif how == "one class":
        metadata["classes"].value = '["a"]'
    elif how == "no JSON":
        metadata["classes"].value = "["
    elif how == "another name":
        model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    elif how == "floats":
        image.elem_type = onnx.TensorProto.FLOAT
    elif how == "one image":
        image.shape.dim[0].dim_value = 1
    elif how == "one output":
        model.graph.output.remove(logits)
    elif how == "no graph":
        model.ClearField("graph")
    return model


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no classes", "lacks the metadata 'classes'"),
        ("no JSON", "is not usable"),
        ("one class", "is not usable"),
        *((how, "takes other inputs") for how in ("other classes", "another name", "floats")),
        *((how, "takes other inputs") for how in ("one image", "one output", "no graph")),
    ],
)
def test_a_crafted_file_is_refused(exported, tmp_path, how, words, capfd):
    model = foreign(how, exported)
    checksum = next(entry for entry in model.metadata_props if entry.key == "checksum")
    checksum.value = PLACEHOLDER
    path = tmp_path / "a.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    assert words in refused(path)
    assert capfd.readouterr() == ("", "")
