import pytest
from support.snapshots import make_snapshot, make_trained

from cifarnet.checkpoints.load import load_trained
from cifarnet.checkpoints.snapshots import pack
from cifarnet.checkpoints.trained import write_weights
from cifarnet.core.errors import UserError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w.pth", r"w\.pth is refused: it is not a torch file"),
        ("w.safetensors", "not a safetensors file"),
        ("w.onnx", r"only predict\.py and evaluate\.py read an ONNX file"),
    ],
)
def test_the_kind_of_file_follows_from_its_name(tmp_path, name, words):
    path = tmp_path / name
    write_weights(make_trained(), path)
    if name == "w.safetensors":
        path.write_bytes(pack(make_snapshot()))
    with pytest.raises(UserError, match=words):
        load_trained(str(path))
