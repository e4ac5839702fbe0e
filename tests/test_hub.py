"""torch.hub, as someone in another directory uses it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CALLER = """
import pickle, sys, torch
import data
{before}
network = torch.hub.load({clone!r}, "cifarnet", {pretrained}source="local")
import model
assert (model.OWN, data.OWN) == (1, 2), "the caller's own files"
assert {clone!r} not in sys.path
{use}
"""


def call(folder: Path, clone: Path, pretrained: str, before: str, use: str) -> None:
    """Runs a program in `folder`, which has a model.py and a data.py of its own."""
    (folder / "model.py").write_text("OWN = 1")
    (folder / "data.py").write_text("OWN = 2")
    given = f"pretrained={pretrained!r}, " if pretrained else ""
    code = CALLER.format(clone=str(clone), pretrained=given, before=before, use=use)
    (folder / "caller.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-W", "error", "caller.py"], cwd=folder, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("before", ["", "import model"], ids=["alone", "beside its own model"])
def test_a_trained_network_by_its_name(trained, tmp_path, before):
    clone = tmp_path / "clone"
    (clone / "results" / "mine").mkdir(parents=True)
    (clone / "results" / "mine" / "weights.safetensors").write_bytes(trained.weights.read_bytes())
    for name in ("hubconf.py", "model.py"):
        shutil.copy(ROOT / name, clone)
    shutil.copytree(
        ROOT / "cifarnet", clone / "cifarnet", ignore=shutil.ignore_patterns("__pycache__")
    )
    picture = next(trained.tree.glob("test/disc/*.png"))
    call(
        tmp_path, clone, "mine", before,
        f"from PIL import Image\n"
        f"assert network.classes == ('bar', 'disc', 'star')\n"
        f"assert not network.training\n"
        f"seen = network(network.normalise(Image.open({str(picture)!r})))\n"
        f"assert network.classes[seen.argmax()] == 'disc'\n"
        f"again = pickle.loads(pickle.dumps(network))\n"
        f"assert torch.equal(again(torch.ones(1, 3, 32, 32)), network(torch.ones(1, 3, 32, 32)))",
    )  # fmt: skip


def test_a_fresh_network(tmp_path):
    call(
        tmp_path, ROOT, "", "",
        "assert network.training\n"
        "assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)\n"
        "assert sum(p.numel() for p in network.parameters()) == 174_762",
    )  # fmt: skip
