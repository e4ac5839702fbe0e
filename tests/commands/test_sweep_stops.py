"""What a sweep leaves that is stopped or killed, and two sweeps in one folder: processes of
their own, in which a stub stands in for main.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.sweeps import ALONE, GRID, starts


@pytest.fixture
def alone(sweep, tmp_path):
    """Starts sweep.py, with three trials, in a process. Epoch n of a trial ends when the file
    `epochs` has n lines."""
    (tmp_path / "epochs").touch()
    grid = GRID.replace("[1, 2]", "[1]").replace("[grid]", "data_dir = 'epochs'\n[grid]")
    Path("sweep.toml").write_text(grid)
    processes = []

    def start():
        processes.append(subprocess.Popen([sys.executable, "-c", ALONE], stdout=subprocess.PIPE))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def let_epochs_end(count: int) -> None:
    Path("epochs").write_text("done\n" * count)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(trial: str) -> int:
    """The finished epochs of a trial."""
    files = list(Path("sweeps/sweep", trial).glob("log/*.csv"))
    return len(files[0].read_text().splitlines()) - 2 if files else 0  # without epoch 0


def test_processes_share_the_trials_and_none_runs_twice(alone):
    let_epochs_end(1)
    first, second = alone(), alone()
    wait_until(lambda: len(starts()) == 2)
    let_epochs_end(3)
    assert [first.wait(60), second.wait(60)] == [0, 0]
    assert starts() == {f"trial-000{n}": [0] for n in range(3)}


def test_a_killed_sweep_ends_its_run_and_goes_on_in_it(alone, sweep):
    let_epochs_end(2)
    killed = alone()
    wait_until(lambda: rows("trial-0000") == 2)
    killed.kill()
    if sys.platform == "linux":
        wait_until(Path("sweeps/sweep/trial-0000/signals.txt").exists)
    let_epochs_end(3)
    assert alone().wait(60) == 0
    assert starts() == {"trial-0000": [0, 2]} | {f"trial-000{n}": [0] for n in (1, 2)}
    table = sweep(Path("sweep.toml").read_text(), "--table").out
    whole = sweep(Path("sweep.toml").read_text(), "--sweep_dir", "whole").out
    assert whole.endswith(table)


def test_a_stop_reaches_each_run_once_and_leaves_it_to_be_resumed(alone):
    for epoch, signum in ((1, signal.SIGINT), (2, signal.SIGTERM)):
        let_epochs_end(epoch)
        stopped = alone()
        wait_until(lambda epoch=epoch: rows("trial-0000") == epoch)
        os.kill(stopped.pid, signum)
        out, _ = stopped.communicate(timeout=60)
        assert stopped.returncode == 128 + signum
        assert b"stopped; repeat the command to continue" in out
    signals = Path("sweeps/sweep/trial-0000/signals.txt").read_text()
    assert signals == f"{signal.SIGINT:d}\n{signal.SIGTERM:d}\n"
    let_epochs_end(3)
    assert alone().wait(60) == 0
    assert starts()["trial-0000"] == [0, 1, 2]
