"""torch.hub, as someone in another directory uses it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.random_models import CLASSES, noise, random_model

import hubconf
from cifarnet.checkpoints.trained import write_weights
from cifarnet.inference.classifier import Classifier

ROOT = Path(__file__).parents[1]
PIXELS = noise(2)

CALLER = """
import pickle, sys, torch
import data
{before}
loaded = torch.hub.load({clone!r}, {arguments}, source="local")
import model
assert (model.OWN, data.OWN) == (1, 2), "the caller's own files"
assert {clone!r} not in sys.path
{use}
"""


def call(folder: Path, clone: Path, arguments: str, use: str, before: str = "") -> None:
    """Runs a program in `folder`, which has a model.py and a data.py of its own."""
    (folder / "model.py").write_text("OWN = 1")
    (folder / "data.py").write_text("OWN = 2")
    program = CALLER.format(clone=str(clone), arguments=arguments, use=use, before=before)
    (folder / "caller.py").write_text(program)
    run = subprocess.run(
        [sys.executable, "-W", "error", "caller.py"], cwd=folder, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.fixture
def clone(tmp_path) -> Path:
    """The project with one result, `mine`: a network of random weights."""
    clone = tmp_path / "clone"
    (clone / "results" / "mine").mkdir(parents=True)
    shutil.copy(ROOT / "hubconf.py", clone)
    shutil.copytree(
        ROOT / "cifarnet", clone / "cifarnet", ignore=shutil.ignore_patterns("__pycache__")
    )
    write_weights(random_model(width=0.1), clone / "results" / "mine" / "weights.safetensors")
    return clone


@pytest.mark.parametrize("before", ["", "import model"], ids=["alone", "beside its own model"])
def test_the_entry_cifarnet_is_a_network(clone, tmp_path, before):
    network = hubconf.cifarnet(str(clone / "results" / "mine" / "weights.safetensors"))
    assert not isinstance(network, Classifier)
    torch.save((PIXELS, network(network.normalise(PIXELS))), tmp_path / "expected.pt")
    use = (
        f"assert loaded.classes == {CLASSES}\n"
        "assert not loaded.training\n"
        "pixels, expected = torch.load('expected.pt')\n"
        "for network in (loaded, pickle.loads(pickle.dumps(loaded))):\n"
        "    torch.testing.assert_close(network(network.normalise(pixels)), expected)\n"
    )
    call(tmp_path, clone, "'cifarnet', 'mine'", use, before)


def test_the_entry_classifier_is_a_classifier(clone, tmp_path):
    name = str(clone / "results" / "mine" / "weights.safetensors")
    network = hubconf.cifarnet(name)
    expected = network(network.normalise(PIXELS)).softmax(1)
    torch.testing.assert_close(hubconf.classifier(name)(PIXELS), expected)
    use = (
        "pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)\n"
        "torch.testing.assert_close(loaded(pixels).sum(1), torch.ones(2))\n"
        "assert torch.equal(pickle.loads(pickle.dumps(loaded))(pixels), loaded(pixels))\n"
    )
    call(tmp_path, clone, "'classifier', 'mine'", use)


def test_a_fresh_network(tmp_path):
    use = (
        "assert loaded.training\n"
        "assert loaded(torch.zeros(2, 3, 32, 32)).shape == (2, 10)\n"
        "assert sum(p.numel() for p in loaded.parameters()) == 174_762"
    )
    call(tmp_path, ROOT, "'cifarnet'", use)
