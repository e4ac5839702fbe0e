"""What several rooms' tests share: small image trees, and the commands run in process."""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, configuration, settings
from PIL import Image

import evaluate
import main
import run_complete_training

_hypothesis = tempfile.TemporaryDirectory()  # else it keeps a folder in the working directory
configuration.set_hypothesis_home_dir(_hypothesis.name)
settings.register_profile(
    "few", max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("few")

COMMANDS = {"main": main.main, "evaluate": evaluate.main, "run_complete_training": run_complete_training.main}
QUICK = (
    *("--dataset", "digits", "--limit_train", "60", "--limit_test", "40", "--batch_size", "20"),
    *("--epochs", "2", "--num_workers", "0", "--snapshot_freq", "1"),
    *("--no-plot_training", "--no-plot_evaluation"),  # half of so short a run's time
)
DRAWN = (*QUICK, "--plot_training", "--plot_evaluation")


class Outcome(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty directory, in process: `command("main", *flags)` -> `Outcome`."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *flags: str) -> Outcome:
        capsys.readouterr()
        code = COMMANDS[name]([str(flag) for flag in flags])
        return Outcome(code, *capsys.readouterr())

    return run


def draw_tree(root: Path, classes=("bar", "disc"), train=6, test=3, size=(32, 32), suffix="png") -> Path:
    """An image folder: of each class, noise about a colour of its own."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (size[1], size[0], 3)) + 60 * (label % 4) + np.array([0, label, 0])
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i:03d}.{suffix}")
    return root


@pytest.fixture
def tree(tmp_path):
    return draw_tree(tmp_path / "pictures")


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The 60,000 CIFAR-10 images as an unpacked tree, where the machine has them."""
    where = os.environ.get("CIFAR10_IMAGES")
    if not where:
        pytest.skip("CIFAR10_IMAGES does not name an unpacked tree of the CIFAR-10 images")
    return Path(where)
