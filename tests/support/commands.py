"""The commands, run in this process, and the flags of short runs."""

import importlib
from pathlib import Path

QUICK = (
    *("--dataset", "digits", "--limit_train", "60", "--limit_test", "40", "--batch_size", "20"),
    *("--epochs", "2", "--num_workers", "0", "--snapshot_freq", "1", "--image_sizes", "8"),
    *("--no-plot_training", "--no-plot_evaluation", "--no-report"),  # half the time of a short run
)
DRAWN = (*QUICK, "--plot_training", "--plot_evaluation", "--report")


def run(name: str, *flags: object) -> int:
    """Runs the command `name`, such as "main", in this process, and returns its exit code."""
    return importlib.import_module(name).main([str(flag) for flag in flags])


def from_folder(tree: Path, batch_size: int = 6) -> tuple[object, ...]:
    """The flags of a run on the image folder `tree`."""
    return ("--dataset", "folder", "--data_dir", tree, "--batch_size", batch_size)
