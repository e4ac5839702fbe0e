"""What many tests share: small image folders, and the commands run in this process."""

import os
import signal
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import browser  # noqa: F401, a fixture
from hypothesis import HealthCheck, configuration, settings
from PIL import Image

import evaluate
import export
import main
import predict
import run_complete_training

_hypothesis = tempfile.TemporaryDirectory()  # else it keeps a folder in the working directory
configuration.set_hypothesis_home_dir(_hypothesis.name)
settings.register_profile(
    "few",
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("few")

MODULES = (main, evaluate, run_complete_training, export, predict)
COMMANDS = {module.__name__: module.main for module in MODULES}
QUICK = (
    *("--dataset", "digits", "--limit_train", "60", "--limit_test", "40", "--batch_size", "20"),
    *("--epochs", "2", "--num_workers", "0", "--snapshot_freq", "1", "--image_sizes", "8"),
    *("--no-plot_training", "--no-plot_evaluation", "--no-report"),  # half the time of a short run
)
DRAWN = (*QUICK, "--plot_training", "--plot_evaluation", "--report")


class Outcome(NamedTuple):
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def signal_handlers():
    """Puts the signal handlers back that a test leaves changed."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty directory, in process: `command("main", *flags)` -> `Outcome`."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *flags: str) -> Outcome:
        capsys.readouterr()
        code = COMMANDS[name]([str(flag) for flag in flags])
        return Outcome(code, *capsys.readouterr())

    return run


def from_folder(tree: Path, batch_size: int = 6) -> tuple[object, ...]:
    """The flags of a run on the image folder `tree`."""
    return ("--dataset", "folder", "--data_dir", tree, "--batch_size", batch_size)


def draw_tree(
    root: Path, classes=("bar", "disc"), train=6, test=3, size=(32, 32), suffix="png"
) -> Path:
    """An image folder. Each class is noise around its own colour."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            colour = 60 * (label % 4) + np.array([0, label, 0])
            for i in range(count):
                pixels = random.integers(0, 60, (size[1], size[0], 3)) + colour
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.{suffix}")
    return root


@pytest.fixture
def tree(tmp_path):
    return draw_tree(tmp_path / "pictures")


def seen_by_others(path: Path) -> np.ndarray:
    """The picture float64 [3,32,32] in 0 to 255, decoded and turned by OpenCV, resized by torch."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1].copy()
    images = torch.from_numpy(pixels).permute(2, 0, 1).double()[None]
    if images.shape[2:] != (32, 32):
        images = F.interpolate(images, (32, 32), mode="bicubic", antialias=True)
        images = images.round().clamp(0, 255)
    return images[0].numpy()


class Trained(NamedTuple):
    """A run on pictures that are easy to tell apart, and what it left."""

    tree: Path
    snapshot: Path
    metrics: Path
    weights: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    tree = draw_tree(root / "pictures", classes=("bar", "disc", "star"))
    places = [f"--{what}_dir={root / what}" for what in ("log", "snapshot", "plot")]
    recipe = ("--epochs", "4", "--augment", "none", "--dropout", "0", "--image_sizes", "32")
    flags = [str(flag) for flag in (*QUICK, *from_folder(tree), *recipe, *places)]
    assert main.main(flags) == 0
    snapshot, weights = root / "snapshot" / "last.pth", root / "weights.safetensors"
    assert export.main(["--snapshot", str(snapshot), "--out", str(weights)]) == 0
    return Trained(tree, snapshot, root / "plot" / "metrics.json", weights)


@pytest.fixture(scope="session")
def onnx_files(trained, tmp_path_factory) -> Path:
    """The folder of both ONNX files of `trained`."""
    folder = tmp_path_factory.mktemp("onnx")
    flags = ("--snapshot", trained.snapshot, "--format", "onnx,onnx-int8", "--out", folder)
    assert export.main(list(map(str, flags))) == 0
    return folder


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The 60,000 CIFAR-10 images as an unpacked tree, where the machine has them."""
    where = os.environ.get("CIFAR10_IMAGES")
    if not where:
        pytest.skip("CIFAR10_IMAGES does not name an unpacked tree of the CIFAR-10 images")
    return Path(where)
