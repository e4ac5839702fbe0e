"""What many tests share: the commands run in this process, one trained model and its exports."""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, configuration, settings
from support.browser import browser, chromium  # noqa: F401, fixtures
from support.commands import QUICK, from_folder, run
from support.pictures import draw_tree

from cifarnet.core.signals import STOPS

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


LONG = {  # files whose tests take long together
    *("commands/test_sweeping.py", "commands/test_sweep_stops.py", "commands/test_benching.py"),
    *("end_to_end/test_limits.py", "end_to_end/test_calibration.py", "export/test_page.py"),
    "test_export.py",
}


def pytest_configure(config: pytest.Config) -> None:
    """Hides CUDA from all tests but its own: the others expect the CPU."""
    if "cuda" not in config.option.markexpr.replace("not cuda", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, then whole runs: at the end they would let other processes wait.

    The files of ranks come later: they use the fork server of end_to_end/conftest.py.
    """

    def place(item: pytest.Item) -> tuple[bool, bool]:
        path = item.path.relative_to(Path(__file__).parent)
        return path.as_posix() not in LONG, path.parts[0] != "end_to_end"

    items.sort(key=place)


class Outcome(NamedTuple):
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def modules_are_no_garbage():
    """The collection of garbage after each figure does not look through all that is loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signal_handlers():
    """Puts the signal handlers back that a test leaves changed."""
    former = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Undoes what `init_process` leaves: numbers close to 0 count as 0, in Python too."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty directory, in process: `command("main", *flags)` -> `Outcome`."""
    monkeypatch.chdir(tmp_path)

    def run_in_directory(name: str, *flags: object) -> Outcome:
        capsys.readouterr()
        code = run(name, *flags)
        return Outcome(code, *capsys.readouterr())

    return run_in_directory


@pytest.fixture
def tree(tmp_path):
    return draw_tree(tmp_path / "pictures")


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
    folders = [f"--{name}_dir={root / name}" for name in ("log", "snapshot", "plot")]
    recipe = ("--network", "cifarnet", "--epochs", "4", "--augment", "none", "--dropout", "0")
    recipe += ("--image_sizes", "32")
    assert run("main", *QUICK, *from_folder(tree), *recipe, *folders) == 0
    snapshot, weights = root / "snapshot" / "last.pth", root / "weights.safetensors"
    assert run("export", "--snapshot", snapshot, "--out", weights) == 0
    return Trained(tree, snapshot, root / "plot" / "metrics.json", weights)


@pytest.fixture
def predict(command, trained):
    """Runs `predict.py --pretrained WEIGHTS` with more flags."""
    return lambda *flags: command("predict", "--pretrained", trained.weights, *flags)


@pytest.fixture(scope="session")
def onnx_files(trained, tmp_path_factory) -> Path:
    """The folder of both ONNX files of `trained`."""
    folder = tmp_path_factory.mktemp("onnx")
    flags = ("--snapshot", trained.snapshot, "--format", "onnx,onnx-int8", "--out", folder)
    assert run("export", *flags) == 0
    return folder


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """A --data_dir with the official CIFAR-10 images, if the machine has them."""
    directory = os.environ.get("CIFAR10_DIR")
    if not directory:
        pytest.skip("CIFAR10_DIR does not name a folder with the official CIFAR-10 images")
    return Path(directory)
