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
from cifarnet.inference.class_maps import why_no_maps
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
    assert why_no_maps(read).startswith("named so keeps no feature maps; ")
    for name in ("network", "mean", "std", "origin"):
        assert getattr(read.infos[0], name) == getattr(model, name)
    assert read.infos[0].sha256 == hashlib.sha256(exported.read_bytes()).hexdigest()


# --- what is refused ---


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_onnx(path, "it")
    assert str(path) in str(caught.value)
    return str(caught.value)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_or_truncated_file_is_refused(exported, tmp_path, share, change):
    content = bytearray(exported.read_bytes())
    at = int(share * len(content))
    content[at] ^= change
    path = tmp_path / "changed.onnx"
    for damaged in (content, content[:at]):
        path.write_bytes(damaged)
        assert "truncated, damaged, or of another program" in refused(path)


def test_what_is_not_a_file_is_refused(tmp_path):
    for path in (tmp_path / "missing.onnx", tmp_path):
        assert "cannot be read" in refused(path)


def rename_input(graph: onnx.GraphProto) -> None:
    graph.input[0].name = graph.node[0].input[0] = "pixels"


CRAFTED = {
    "another name": rename_input,
    "floats": lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", 1),
    "one image": lambda graph: setattr(
        graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1
    ),
    "one output": lambda graph: graph.output.pop(0),
    "no graph": lambda graph: graph.Clear(),
}


@pytest.mark.parametrize("how", [*CRAFTED, '["a", "b"]', '["a"]', "["])
def test_a_crafted_file_is_refused_though_its_checksum_fits(exported, tmp_path, how, capfd):
    model = onnx.load(exported)
    metadata = {entry.key: entry for entry in model.metadata_props}
    metadata["checksum"].value = PLACEHOLDER
    if how in CRAFTED:
        CRAFTED[how](model.graph)
    else:
        metadata["classes"].value = how
    path = tmp_path / "a.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    assert ("is not usable" if how in ('["a"]', "[") else "takes other inputs") in refused(path)
    assert capfd.readouterr() == ("", "")
