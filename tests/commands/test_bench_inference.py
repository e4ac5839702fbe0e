import json
import re
import shutil

import pytest
from support.random_models import random_model

import bench
from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.core import device
from cifarnet.core.errors import UserError
from commands import bench_inference
from commands.bench_inference import inference_table
from commands.export_formats import FORMATS, Source


@pytest.fixture
def short(onnx_files, monkeypatch):
    """Few and small batches."""
    for name in ("onnx", "onnx-int8"):  # written once, for all tests
        copy = FORMATS[name]._replace(
            write=lambda source, path: shutil.copy(onnx_files / path.name, path)
        )
        monkeypatch.setitem(FORMATS, name, copy)
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: True)
    monkeypatch.setattr(bench_inference, "BATCHES", {1: 2, 2: 1, 4: 1})


def test_each_form_of_a_model_is_measured(trained, short, capsys, tmp_path):
    """Which is faster no test can say; all forms name the same classes."""
    file = tmp_path / "figures.json"
    flags = ["--inference", "--pretrained", trained.weights, "--data_dir", trained.tree]
    flags += ["--quick", "--device", "cpu", "--json", file]
    assert bench.main(list(map(str, flags))) == 0
    figures = json.loads(file.read_text())["figures"]
    assert list(figures) == ["PyTorch, fp32", "PyTorch, bf16", "onnx", "onnx-int8"]
    for figure in figures.values():
        assert 0 < figure["latency"] <= figure["latency_95"]
        assert figure["top1"] == 1
    assert capsys.readouterr().out.count("| 100.00% |") == 4
    sizes = [figure["bytes"] for figure in figures.values()]
    assert sizes[0] == sizes[1] == pytest.approx(trained.weights.stat().st_size, abs=100)
    assert sizes[3] < sizes[2] / 2


def test_several_models_take_turns(trained, short, capsys, tmp_path):
    half, file = tmp_path / "half.safetensors", tmp_path / "figures.json"
    FORMATS["safetensors-half"].write(Source(load_trained(str(trained.weights)), None, None), half)
    flags = ["--inference", "--pretrained", f"{trained.weights},{half}", "--quick"]
    assert bench.main([*flags, "--device", "cpu", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())["figures"]
    kinds = ["PyTorch, fp32", "PyTorch, bf16", "onnx", "onnx-int8"]
    assert list(figures) == [
        f"{path}, {kind}" for path in (trained.weights, half) for kind in kinds
    ]
    turns = re.findall(r"round 1: (.+?), (?:PyTorch|onnx)", capsys.readouterr().err)
    assert turns == [str(trained.weights)] * 4 + [str(half)] * 4


@pytest.mark.parametrize(
    ("inside", "dataset"), [("cifar-10-batches-py", "cifar10"), ("train/a", "folder")]
)
def test_a_downloaded_data_set_and_a_tree_are_told_apart(tmp_path, monkeypatch, inside, dataset):
    (tmp_path / inside).mkdir(parents=True)
    read = []

    def load_splits(settings, say, classes):
        read.append((settings.dataset, settings.data_dir))
        raise UserError("enough")

    monkeypatch.setattr(bench_inference, "load_splits", load_splits)
    for trained_on in ("digits", "folder", "cifar10"):
        model = random_model(dataset=trained_on)
        with pytest.raises(UserError, match="enough"):
            bench_inference._load_images(model, str(tmp_path))
    assert read == [(dataset, str(tmp_path))] * 3


def test_test_images_are_enough(trained, tmp_path):
    shutil.copytree(trained.tree / "test" / "bar", tmp_path / "test" / "bar")
    splits, test = bench_inference._load_images(load_trained(str(trained.weights)), str(tmp_path))
    assert len(splits.train) == len(test) == 3  # calibrate int8; give top-1
    assert {test.classes[label] for label in test.labels} == {"bar"}


def test_the_table():
    figure = {"latency": 0.0012, "latency_95": 0.002, "batch_32": 900.4, "batch_512": 2000.0}
    figures = {"onnx": figure | {"bytes": 698_000, "top1": 0.8815}}
    figures["PyTorch, fp32"] = figures["onnx"] | {"top1": None}
    assert inference_table(figures).splitlines()[2:] == [
        "| onnx | 1.20 ms | 2.00 ms | 900 img/s | 2,000 img/s | 0.70 MB | 88.15% |",
        "| PyTorch, fp32 | 1.20 ms | 2.00 ms | 900 img/s | 2,000 img/s | 0.70 MB |  |",
    ]
