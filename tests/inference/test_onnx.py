"""ONNX files: what is in them, what they answer, and which are refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cifarnet.core.errors import UserError
from cifarnet.inference.classifier import Classifier, TorchClassifier
from cifarnet.inference.onnx import _seal, read_onnx, write_int8, write_onnx
from cifarnet.inference.predictor import NetworkInput
from cifarnet.settings.network import NetworkSettings
from model import build_model

CLASSES = ("bar", "disc", "star")
METADATA = {"classes": json.dumps(CLASSES), "epoch": "7", "source": '"ü"'}


def classifier(size: int = 32, **changes: object) -> TorchClassifier:
    """A network as training leaves one: no running statistic or factor is 0 or 1."""
    torch.manual_seed(0)
    model = build_model(NetworkSettings(**changes), len(CLASSES)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 2.0), (module.bias.data, -0.5, 0.5),
            ):  # fmt: skip
                values.uniform_(low, high)
    normalise = NetworkInput((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), size)
    return TorchClassifier(model, normalise, CLASSES, size, "ours")


def pixels(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def ours() -> TorchClassifier:
    return classifier()


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(ours, METADATA, path)
    return path


@pytest.fixture(scope="module")
def quantised(ours, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model-int8.onnx"
    write_int8(ours, pixels(20), METADATA, path)
    return path


@pytest.fixture(scope="module")
def alone(exported) -> onnxruntime.InferenceSession:
    """The runtime alone, as another program would use it."""
    return onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])


def sealed(model: onnx.ModelProto, path: Path) -> Path:
    content = model.SerializeToString()
    path.write_bytes(content + _seal(content))
    return path


# --- what is in a file ---


@pytest.mark.parametrize("file", ["exported", "quantised"])
def test_the_checker_passes_and_the_metadata_are_complete(file, request):
    path = request.getfixturevalue(file)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert len(said.pop("checksum")) == 64
    assert said == METADATA
    assert model.producer_name == "CIFARNet"
    assert str(Path.cwd()) not in str(model)


def test_input_and_outputs_are_those_of_the_contract(exported):
    model = onnx.load(exported)
    image, *outputs = (*model.graph.input, *model.graph.output)

    def described(value):
        kind = value.type.tensor_type
        return value.name, kind.elem_type, [d.dim_param or d.dim_value for d in kind.shape.dim]

    assert described(image) == ("image", onnx.TensorProto.UINT8, ["N", 3, 32, 32])
    assert list(map(described, outputs)) == [
        ("logits", onnx.TensorProto.FLOAT, ["N", 3]),
        ("probabilities", onnx.TensorProto.FLOAT, ["N", 3]),
    ]


def test_batch_normalisation_is_folded_and_the_blocks_are_plain(exported):
    """Nine convolutions, as the network has: the fast forms would add others, and reshape."""
    kinds = [node.op_type for node in onnx.load(exported).graph.node]
    assert kinds.count("Conv") == 9
    assert set(kinds) == {
        *("Cast", "Sub", "Mul", "Conv", "Relu", "Add", "ReduceMean", "Gemm", "Softmax")
    }  # fmt: skip


def test_equal_networks_give_equal_files(quantised, tmp_path):
    write_int8(classifier(), pixels(20), METADATA, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == quantised.read_bytes()


def test_the_quantised_file_is_smaller(exported, quantised):
    assert quantised.stat().st_size < exported.stat().st_size / 3
    stored = {tensor.data_type for tensor in onnx.load(quantised).graph.initializer if tensor.dims}
    assert onnx.TensorProto.INT8 in stored


# --- what it answers ---


@given(st.integers(1, 5), st.sampled_from(["random", "black", "white"]), st.integers(0, 99))
def test_the_answers_are_the_networks_for_any_number_of_images(alone, ours, count, kind, seed):
    images = pixels(count, seed=seed)
    if kind != "random":
        images.fill_(0 if kind == "black" else 255)
    with torch.inference_mode():
        expected = ours(images)
    logits, probabilities = alone.run(None, {"image": images.numpy()})
    assert np.abs(logits - expected.numpy()).max() < 1e-4
    np.testing.assert_allclose(probabilities, expected.softmax(1), atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"network": "residual"}, {"attention": "cbam", "compound_scale": 1.0}], ids=str
)
def test_another_network_of_another_size(tmp_path, changes):
    ours = classifier(48, **changes)
    write_onnx(ours, METADATA, tmp_path / "model.onnx")
    read = read_onnx(tmp_path / "model.onnx", "it")
    assert read.size == 48
    with torch.inference_mode():
        torch.testing.assert_close(read(pixels(3, 48)), ours(pixels(3, 48)), atol=1e-4, rtol=0)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "BatchNormalization" not in kinds


def test_a_quantised_file_is_near_the_network(quantised, ours):
    images = pixels(20)
    read = read_onnx(quantised, "it")
    with torch.inference_mode():
        expected = ours(images)
    assert 0 < (read(images) - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_file_is_a_classifier(exported, alone):
    read = read_onnx(exported, "named so")
    assert isinstance(read, Classifier)
    (logits,) = alone.run(["logits"], {"image": pixels(3).numpy()})
    assert torch.equal(read(pixels(3)), torch.from_numpy(logits))
    assert (read.classes, read.size, read.source) == (CLASSES, 32, "named so")
    assert read.metadata["epoch"] == "7"


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
    said = {entry.key: entry for entry in model.metadata_props}
    image, logits = model.graph.input[0].type.tensor_type, model.graph.output[0]
    if how == "no classes":
        model.metadata_props.remove(said["classes"])
    elif how == "other classes":
        said["classes"].value = '["a", "b"]'
    elif how == "no JSON":
        said["classes"].value = "["
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
    "how",
    [
        *("no classes", "other classes", "no JSON", "another name", "floats", "one image"),
        *("one output", "no graph"),
    ],
)
def test_a_crafted_file_is_refused(exported, tmp_path, how, capfd):
    assert "takes other inputs" in refused(sealed(foreign(how, exported), tmp_path / "a.onnx"))
    assert capfd.readouterr() == ("", "")
