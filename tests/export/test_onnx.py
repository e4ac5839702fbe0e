"""Written ONNX files: what is in them, and what they answer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import QUIET
from support.outputs import figures
from support.pictures import draw_tree
from support.random_models import CLASSES, noise, random_model

from cifarnet.checkpoints.trained import write_weights
from cifarnet.export.onnx import write_int8, write_onnx
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.inference.onnx import read_onnx


def calibrated() -> TorchClassifier:
    return TorchClassifier(replace(random_model(), temperature=2.5))


@pytest.fixture(scope="module")
def ours() -> TorchClassifier:
    return calibrated()


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(ours, path)
    return path


@pytest.fixture(scope="module")
def quantised(ours, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model-int8.onnx"
    write_int8(ours, noise(20), path)
    return path


# --- what is in a file ---


@pytest.mark.parametrize("file", ["exported", "quantised"])
def test_the_checker_passes_and_the_metadata_are_complete(file, request, ours):
    path = request.getfixturevalue(file)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata.pop("checksum").startswith("cifarnet-sha256:")
    assert json.loads(metadata.pop("source")) == "some.pth"
    origin = json.loads(metadata["origin"])
    quantised = ", before the quantisation" if file == "quantised" else ""
    assert origin.pop("accuracy_from") == f"{ours.infos[0].origin.accuracy_from}{quantised}"
    expected = ours.infos[0].metadata()
    assert metadata.keys() == expected.keys()
    assert origin.items() <= json.loads(expected["origin"]).items()
    assert all(metadata[name] == expected[name] for name in expected.keys() - {"origin"})
    assert model.producer_name == "CIFARNet"
    assert str(Path.cwd()) not in str(model)


def test_batch_normalisation_is_folded_and_the_blocks_are_plain(exported):
    """Nine convolutions, as the network has: the fast forms would add others, and reshape."""
    kinds = [node.op_type for node in onnx.load(exported).graph.node]
    assert kinds.count("Conv") == 9
    assert set(kinds) == {
        *("Cast", "Sub", "Mul", "Conv", "Relu", "Add", "ReduceMean", "Gemm", "Softmax"),
        "Div",  # by the temperature
    }  # fmt: skip


def test_equal_networks_give_equal_files(quantised, tmp_path):
    write_int8(calibrated(), noise(20), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == quantised.read_bytes()


def test_a_quantised_file_is_smaller_and_near_the_network(exported, quantised, ours):
    assert quantised.stat().st_size < exported.stat().st_size / 3
    stored = {tensor.data_type for tensor in onnx.load(quantised).graph.initializer if tensor.dims}
    assert onnx.TensorProto.INT8 in stored
    with torch.inference_mode():
        expected = ours.logits(noise(20))
    difference = (read_onnx(quantised, "it").logits(noise(20)) - expected).abs().max()
    assert 0 < difference < 0.1 * expected.abs().max()


def test_int8_weights_have_seven_bits_a_scale_per_channel_and_a_float_head(quantised):
    graph = onnx.load(quantised).graph
    by_output = {name: node for node in graph.node for name in node.output}
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 9
    for node in convolutions:
        weight, scale = by_output[node.input[1]].input[:2]
        assert values[scale].shape == values[weight].shape[:1]
        assert np.abs(values[weight].astype(int)).max() <= 64
    (head,) = (node for node in graph.node if node.op_type == "Gemm")
    assert values[head.input[1]].dtype == np.float32


# --- what it answers ---


@given(st.integers(1, 5), st.sampled_from(["random", "black", "white"]), st.integers(0, 99))
def test_the_answers_are_the_networks_for_any_number_of_images(exported, ours, count, kind, seed):
    """By the runtime alone, as another program would use it."""
    images = noise(count, seed=seed)
    if kind != "random":
        images.fill_(0 if kind == "black" else 255)
    with torch.inference_mode():
        expected = ours.logits(images)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(None, {"image": images.numpy()})
    assert np.abs(logits - expected.numpy()).max() < 1e-4
    np.testing.assert_allclose(probabilities, expected.softmax(1), atol=1e-5)


def test_predict_and_evaluate_know_the_temperature(command, exported, ours):
    draw_tree(Path("tree"), classes=CLASSES)
    write_weights(ours.infos[0], Path("weights.safetensors"))
    images, answers = ("--dataset", "folder", "--data_dir", "tree", "--no-amp"), []
    for path in (exported, Path("weights.safetensors")):
        done = command("predict", "--pretrained", path, "--json", "tree")
        rows = [json.loads(line)["predictions"] for line in done.out.splitlines()]
        answers.append([guess["probability"] for row in rows for guess in row])
        flags = (*images, "--plot_dir", path.stem, *QUIET)
        assert command("evaluate", "--pretrained", path, *flags).code == 0
    assert answers[0] == pytest.approx(answers[1], abs=1e-4)
    report, of_weights = figures(Path("model")), figures(Path("weights"))
    for name in ("temperature", "calibration_error", "calibration_error_before"):
        assert report[name] == pytest.approx(of_weights[name], abs=1e-4)
    assert report["temperature"] == 2.5


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "lite", "attention": "se"},
        {"network": "residual"},
        {"attention": "cbam", "attention_at": "4", "compound_scale": 1.0},
    ],
    ids=str,
)
def test_another_network_of_another_size(tmp_path, changes):
    ours = TorchClassifier(random_model(48, **changes))
    write_onnx(ours, tmp_path / "model.onnx")
    read = read_onnx(tmp_path / "model.onnx", "it")
    assert read.image_size == 48
    with torch.inference_mode():
        torch.testing.assert_close(
            read.logits(noise(3, 48)), ours.logits(noise(3, 48)), atol=1e-4, rtol=0
        )
