import json
import shutil

import pytest

import bench
import bench_inference
import bench_training
from cifarnet.inference import speed
from cifarnet.settings.network import NetworkSettings
from formats import FORMATS
from model import build_model, parameter_count


def test_the_gradients_exchanged_are_this_networks():
    assert parameter_count(build_model(NetworkSettings(), 10)) == bench_training.PARAMETERS


def test_wrong_requests_are_one_line(capsys):
    for argv, words in (
        (["--nonsense"], "unrecognized arguments: --nonsense; see --help"),
        (["--ranks", "1,two"], "--ranks 1,two: name numbers of processes, as in 1,2"),
        (["--quick", "--only", "compiled"], "no measurement of --quick has that in its name"),
        (["--only", "nothing"], "--only nothing: no measurement has that in its name"),
        (["--data_dir", "."], "--pretrained and --data_dir are for --inference; add it"),
        (["--inference", "--pretrained", "nobody"], "there are no weights 'nobody'"),
    ):
        assert bench.main(argv) == 2
        assert words in capsys.readouterr().err


def test_the_profile_names_the_costliest_operations(monkeypatch, capsys):
    monkeypatch.setattr(bench_training, "BATCH", 8)
    assert bench.main(["--profile", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "Self CPU" in shown and shown.count("aten::") >= 10


def test_medians_of_all_rounds_are_shown_and_written(monkeypatch, capsys, tmp_path):
    rates = iter([1e9, 30.0, 3e9, 10.0, 2e9, 20.0])  # three rounds of two measurements
    monkeypatch.setattr(
        bench, "_in_child", lambda name, device: {"rate": next(rates), "memory": 2**30}
    )
    file = tmp_path / "figures.json"
    named = {"matrix product, fp32": (True, None), "plain loop, fp32": (True, None)}
    monkeypatch.setattr(bench, "measurements", lambda device: named)
    assert bench.main(["--device", "cpu", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())["figures"]
    assert {name: figure["rate"] for name, figure in figures.items()} == {
        "matrix product, fp32": 2e9, "plain loop, fp32": 20.0
    }  # fmt: skip
    assert "| plain loop, fp32 | 20 img/s | 1.0 |" in capsys.readouterr().out


def test_a_measurement_that_fails_ends_the_command_with_1(monkeypatch, capsys):
    named = {"no such thing": (True, None)}
    monkeypatch.setattr(bench, "measurements", lambda device: named)
    assert bench.main(["--device", "cpu", "--quick"]) == 1
    assert "the measurement 'no such thing' failed: " in capsys.readouterr().err


def test_the_table_has_ratios_to_the_plain_loop_and_shares_of_the_ceiling():
    rates = {
        "matrix product, bf16": 4e12,
        "plain loop, fp32": 100.0,
        "step, bf16, fast forms": 1000.0,
        "evaluation, bf16, fast forms": 3000.0,
    }
    figures = {name: {"rate": rate, "memory": 2**30} for name, rate in rates.items()}
    assert bench.table(figures, 1e9).splitlines()[2:] == [
        "| matrix product, bf16 | 4,000 GFLOP/s |  |  | 1.0 GiB |",
        "| plain loop, fp32 | 100 img/s | 1.0 |  | 1.0 GiB |",
        "| step, bf16, fast forms | 1,000 img/s | 10.0 | 25% | 1.0 GiB |",
        "| evaluation, bf16, fast forms | 3,000 img/s |  |  | 1.0 GiB |",
    ]


def test_a_training_step_is_three_forward_passes():
    depthwise = 9 * (32 * 32 * (40 + 128) + 16 * 16 * 240)
    first = 32 * 32 * 27 * 40
    pointwise = 32 * 32 * 2 * (40 * 128 + 128 * 240) + 16 * 16 * 240 * 384
    head = 384 * 10 + 384 * 16 * 16  # and the pooling, as a matrix product
    assert bench_training.flops_per_image() == 3 * 2 * (depthwise + first + pointwise + head)


def test_networks_are_measured_in_turns_and_their_costs_shown(monkeypatch, capsys):
    rates = {"network, published": 100.0, "network, compound scale 1": 40.0}
    asked = []

    def measure(name, device):
        asked.append(name)
        return {"rate": rates.get(name, 80.0), "memory": 2**30}

    monkeypatch.setattr(bench, "_in_child", measure)
    assert bench.main(["--device", "cpu", "--networks"]) == 0
    names = [f"network, {name}" for name in bench_training.NETWORKS]
    assert asked == names * 3
    shown = capsys.readouterr().out
    assert "| published | 174,762 | 100.2 million | 100 img/s | 100% | 1.0 GiB |" in shown
    assert "| eca | 174,777 | 100.2 million | 80 img/s | 80% | 1.0 GiB |" in shown
    assert "| compound scale 1 | 398,458 | 216.9 million | 40 img/s | 40% | 1.0 GiB |" in shown


def test_rows_of_networks_are_measured_only_when_asked_for():
    assert not any(name.startswith("network") for name in bench._parse([]).chosen)


def test_a_step_of_a_grown_network_is_measured():
    assert bench_training.step("cpu", False, batch=4, attention="se", depth=2.0) > 0


@pytest.mark.parametrize("engine", ["albumentations", "batched"])
def test_the_training_loop_is_measured(engine):
    assert bench_training.training("cpu", False, engine, 1, batch_size=8) > 0


def test_each_form_of_a_network_is_measured(trained, onnx_files, monkeypatch, capsys, tmp_path):
    """Which is faster no test can say; all forms name the same classes."""
    for name in ("onnx", "onnx-int8"):  # written once, for all tests
        spec = FORMATS[name]
        copy = spec._replace(write=lambda source, path: shutil.copy(onnx_files / path.name, path))
        monkeypatch.setitem(FORMATS, name, copy)
    monkeypatch.setattr(speed, "BATCHES", {2: 1, 4: 1})
    monkeypatch.setattr(speed, "SINGLES", 2)
    file = tmp_path / "figures.json"
    given = ["--inference", "--pretrained", trained.weights, "--data_dir", trained.tree]
    given += ["--quick", "--device", "cpu", "--json", file]
    assert bench.main(list(map(str, given))) == 0
    figures = json.loads(file.read_text())["figures"]
    assert list(figures) == ["PyTorch, fp32", "PyTorch, bf16", "onnx", "onnx-int8"]
    for figure in figures.values():
        assert 0 < figure["latency"] <= figure["latency_95"]
        assert figure["batch_2"] > 0 < figure["batch_4"]
        assert figure["top1"] == 1
    assert capsys.readouterr().out.count("| 100.00% |") == 4
    sizes = [figure["bytes"] for figure in figures.values()]
    assert sizes[0] == sizes[1] == pytest.approx(trained.weights.stat().st_size, abs=100)
    assert sizes[3] < sizes[2] / 2


def test_the_table_of_inference():
    figure = {"latency": 0.0012, "latency_95": 0.002, "batch_32": 900.4, "batch_512": 2000.0}
    figures = {"onnx": figure | {"bytes": 698_000, "top1": 0.8815}}
    figures["PyTorch, fp32"] = figures["onnx"] | {"top1": None}
    assert bench_inference.inference_table(figures).splitlines()[2:] == [
        "| onnx | 1.20 ms | 2.00 ms | 900 img/s | 2,000 img/s | 0.70 MB | 88.15% |",
        "| PyTorch, fp32 | 1.20 ms | 2.00 ms | 900 img/s | 2,000 img/s | 0.70 MB |  |",
    ]
