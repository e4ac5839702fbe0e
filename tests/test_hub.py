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
clone = {clone!r}
def load(*arguments):
    return torch.hub.load(clone, *arguments, source="local")
{use}
import model
assert (model.OWN, data.OWN) == (1, 2), "the caller's own files"
assert clone not in sys.path
"""


def call(folder: Path, clone: Path, use: str, before: str = "") -> None:
    """Runs a program in `folder`, which has a model.py and a data.py of its own."""
    (folder / "model.py").write_text("OWN = 1")
    (folder / "data.py").write_text("OWN = 2")
    program = CALLER.format(clone=str(clone), use=use, before=before)
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


@pytest.fixture
def mine(clone) -> str:
    return str(clone / "results" / "mine" / "weights.safetensors")


def test_the_entry_cifarnet_is_a_network(clone, mine, tmp_path):
    """Beside the caller's own model.py, which it has imported."""
    network = hubconf.cifarnet(mine)
    assert not isinstance(network, Classifier)
    torch.save((PIXELS, network(network.normalise(PIXELS))), tmp_path / "expected.pt")
    use = (
        "loaded = load('cifarnet', 'mine')\n"
        f"assert loaded.classes == {CLASSES}\n"
        "assert not loaded.training\n"
        "pixels, expected = torch.load('expected.pt')\n"
        "for network in (loaded, pickle.loads(pickle.dumps(loaded))):\n"
        "    torch.testing.assert_close(network(network.normalise(pixels)), expected)\n"
    )
    call(tmp_path, clone, use, "import model")


def test_the_entry_classifier_is_a_classifier_and_without_a_name_a_network_is_fresh(
    clone, mine, tmp_path
):
    """Before the caller imports a model.py of its own."""
    network = hubconf.cifarnet(mine)
    expected = network(network.normalise(PIXELS)).softmax(1)
    torch.testing.assert_close(hubconf.classifier(mine)(PIXELS), expected)
    use = (
        "loaded = load('classifier', 'mine')\n"
        "pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)\n"
        "torch.testing.assert_close(loaded(pixels).sum(1), torch.ones(2))\n"
        "assert torch.equal(pickle.loads(pickle.dumps(loaded))(pixels), loaded(pixels))\n"
        "fresh = load('cifarnet')\n"
        "assert fresh.training\n"
        "assert fresh(torch.zeros(2, 3, 32, 32)).shape == (2, 10)\n"
        "assert sum(p.numel() for p in fresh.parameters()) == 174_762\n"
    )
    call(tmp_path, clone, use)
