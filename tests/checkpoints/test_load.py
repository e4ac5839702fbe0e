from pathlib import Path

import pytest
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
