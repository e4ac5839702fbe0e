"""Runs in processes of their own, which kill themselves at a chosen moment, and what is left."""

import gc
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import main
import plots
from cifarnet.core.log import RunLog
from support.commands import QUICK
from support.outputs import assert_same_state

RUN = (
    *(*QUICK, "--epochs", "5", "--save_best", "--plot_freq", "2", "--plot_training"),
    *("--snapshot_freq", "2", "--keep_snapshots", "1"),
)
STATE = ("weights", "optimizer", "scheduler", "scaler", "comparable_after", "history")
STATE += ("random_state",)


# --- in the process of a run ---


def _at_call(number: int, owner: object, name: str, *, after: bool = False) -> None:
    """Has the process kill itself at the `number`-th call of `owner.name`, or `after` it."""
    original, calls = getattr(owner, name), itertools.count(1)

    def fatal(*args, **kwargs):
        last = next(calls) == number
        if last and name == "savefig":
            args[1].write(b"half a picture")
            args[1].flush()
        result = None if last and not after else original(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, fatal)


FAULTS: dict[str, Callable[[int], None]] = {
    "inside a write": lambda number: _at_call(number, os, "fsync"),
    "before a renaming": lambda number: _at_call(number, Path, "replace"),
    "after a renaming": lambda number: _at_call(number, Path, "replace", after=True),
    "inside a plot": lambda number: _at_call(number, plots.Figure, "savefig"),
}


def live(
    directory: Path, flags: tuple[str, ...], fault: str = "", number: int = 0, early: bool = False
) -> None:
    """The process of one run, in a session of its own, as a terminal would start it.

    Calls are counted from the start of the log, or, if `early`, from the start of the run.
    """
    os.setsid()
    gc.freeze()  # as tests/conftest.py does
    multiprocessing.set_start_method("fork", force=True)  # of workers: Linux's default again
    os.chdir(directory)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    open_log = RunLog.open

    def open_log_and_arm(log, folder):
        open_log(log, folder)
        FAULTS[fault](number)

    if early:
        FAULTS[fault](number)
    elif fault:
        RunLog.open = open_log_and_arm
    sys.exit(main.main(flags))


# --- in the test ---


def end(process: multiprocessing.Process, code: int = 0) -> None:
    process.join(120)
    assert process.exitcode == code


def wait_for_file(path: Path, process: multiprocessing.Process) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_run(directory: Path, reference: Path) -> None:
    """Asserts that both have the same snapshots, best_model.pth included, with the same content.

    A best_model.pth that was ahead of last.pth at the kill is moved aside and made again.
    """
    ours, theirs = directory / "snapshots_complete", reference / "snapshots_complete"
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir() if path.is_file()) == names
    for name in names:
        a, b = (torch.load(where / name, weights_only=True) for where in (ours, theirs))
        for key in STATE:
            assert_same_state(a[key], b[key], f"{name} {key}")
