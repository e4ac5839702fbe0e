from pathlib import Path

import pytest
import torch
from support.snapshots import make_snapshot, make_trained

from cifarnet.checkpoints import paths
from cifarnet.checkpoints.load import load_trained
from cifarnet.checkpoints.snapshots import pack
from cifarnet.checkpoints.trained import write_weights
from cifarnet.core.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")


@pytest.mark.parametrize("name", ["mine", "w.safetensors", "without_suffix", "hub"])
def test_weights_are_known_by_a_results_name_a_path_or_a_folder(name):
    files = {"mine": "results/mine/weights.safetensors", "hub": "hub/model.safetensors"}
    path = Path(files.get(name, name))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(make_trained(), path)
    path.with_name("config.json").touch()
    trained = load_trained(name)
    assert trained.source == name
    assert torch.equal(trained.weights["weight"], make_trained().weights["weight"])


@pytest.mark.parametrize("evaluate", ["raw", "ema"])
def test_a_snapshot_gives_the_weights_that_its_run_evaluates(evaluate):
    settings = {"ema_decay": 0.9, "evaluate": evaluate}
    snapshot = make_snapshot(averaged={"module.weight": torch.zeros(3)}, settings=settings)
    Path("last.pth").write_bytes(pack(snapshot))
    trained = load_trained("last.pth")
    assert (trained.source, trained.origin.weights) == ("last.pth", evaluate)
    assert (trained.weights["weight"] == 0).all() == (evaluate == "ema")


def test_an_onnx_file_has_no_weights_to_load():
    pytest.importorskip("onnxruntime")
    Path("x.onnx").touch()
    with pytest.raises(UserError, match=r"only predict\.py and evaluate\.py read an ONNX file"):
        load_trained("x.onnx")


def test_the_kind_of_file_follows_from_its_name():
    write_weights(make_trained(), Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth is refused: it is not a torch file"):
        load_trained("w.pth")
    Path("last.safetensors").write_bytes(pack(make_snapshot()))
    with pytest.raises(UserError, match="not a safetensors file"):
        load_trained("last.safetensors")
