"""The commands, run in this process, and the flags of short runs."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = (
    *("--network", "lite"),  # faster than CIFARNet, which the fixture `trained` trains
    *("--dataset", "digits", "--limit_train", "60", "--limit_test", "40", "--batch_size", "20"),
    *("--epochs", "2", "--num_workers", "0", "--snapshot_freq", "1", "--image_sizes", "8"),
    *("--no-plot_training", "--no-plot_evaluation", "--no-report"),  # half the time of a short run
)
# Half of that: one epoch, few images.
SHORT = (*QUICK, "--epochs", "1", "--limit_train", "20", "--limit_test", "20")
QUIET = ("--no-plot_evaluation", "--no-report")  # for evaluate.py: a tenth of the time
DRAWN = (*QUICK, "--plot_training", "--plot_evaluation", "--report")


def run(name: str, *flags: object) -> int:
    """Runs the command `name`, such as "main", in this process, and returns its exit code."""
    return importlib.import_module(name).main([str(flag) for flag in flags])


def from_folder(tree: Path, batch_size: int = 6) -> tuple[object, ...]:
    """The flags of a run on the image folder `tree`."""
    return ("--dataset", "folder", "--data_dir", tree, "--batch_size", batch_size)


def without_privileges(*words: object) -> subprocess.CompletedProcess:
    """Runs a Python file with flags; root, too, may then read only what the permissions allow."""
    drop = "-dac_override,-dac_read_search"
    prefix = ["setpriv", "--bounding-set", drop, "--inh-caps", drop] if os.getuid() == 0 else []
    if prefix and subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("needs setpriv, or a user other than root")
    words = [*prefix, sys.executable, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def assert_one_line(done, code: int, *words: str) -> None:
    """The command ended with `code` and one line, an error with all `words`."""
    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert done.err.startswith("error: ")
    assert all(word in done.err for word in words), done.err
