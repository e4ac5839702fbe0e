"""Runs that are killed: nothing is lost, no result changes, and nothing leaks."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from support.commands import DRAWN, QUICK, assert_one_line
from support.killed_runs import FAULTS, RUN, assert_same_run, end, wait_for_file

from cifarnet.checkpoints.snapshots import read_snapshot


def assert_all_intact(directory: Path) -> None:
    for path in directory.glob("snapshots_complete/[!.]*.pth"):
        read_snapshot(path)
    for path in directory.glob("plots_complete/[!.]*.png"):
        with Image.open(path) as image:
            image.load()


def finish_and_compare(begin, directory: Path, reference: Path) -> None:
    end(begin(directory, *RUN, "--resume", "auto"))
    assert_same_run(directory, reference)
    assert not list(directory.glob("*/.*"))


@pytest.mark.parametrize(
    ("fault", "number", "early"),
    [
        ("inside a write", 9, False),
        ("after a renaming", 3, False),
        ("after a renaming", 3, True),  # while folders are tried
    ],
)
def test_a_run_killed_at_a_bad_moment_goes_on_unchanged(
    begin, tmp_path, reference, fault, number, early
):
    run = tmp_path / "run"
    end(begin(run, *RUN, fault=fault, number=number, early=early), -signal.SIGKILL)
    assert_all_intact(run)
    finish_and_compare(begin, run, reference)


@pytest.mark.slow
def test_a_run_killed_at_many_random_moments(begin, tmp_path, reference):
    """After each kill one copy of what is left runs to its end, and another is killed again."""
    moments, kills, run = random.Random(), {"random": 0}, tmp_path / "run"
    started = time.monotonic()
    finish_and_compare(begin, tmp_path / "copy", reference)
    longest = time.monotonic() - started
    while kills["random"] < 16:
        workers = kills["random"] % 3
        process = begin(run, *RUN, "--resume", "auto", "--num_workers", workers)
        process.join(moments.uniform(0, longest))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        assert_all_intact(run)
        if process.exitcode == 0:  # it had ended already
            assert_same_run(run, reference)
            shutil.rmtree(run)
        else:
            kills["random"] += 1
            shutil.rmtree(tmp_path / "copy")
            shutil.copytree(run, tmp_path / "copy")
            finish_and_compare(begin, tmp_path / "copy", reference)
    for fault in FAULTS:
        shutil.rmtree(run, ignore_errors=True)
        kills[fault] = 0
        for _ in range(3):
            number = moments.randint(1, 6)
            process = begin(run, *RUN, "--resume", "auto", fault=fault, number=number)
            process.join(120)
            assert process.exitcode in (0, -signal.SIGKILL)
            kills[fault] += process.exitcode != 0
            assert_all_intact(run)
        finish_and_compare(begin, run, reference)
    print(f"killed: {kills}")
    assert all(kills.values())


def test_a_second_run_on_the_same_directory_is_refused_while_the_first_lives(
    begin, tmp_path, command
):
    long = (*QUICK, "--snapshot_freq", "0", "--epochs")
    first = begin(tmp_path, *long, "5000", "--num_workers", "2")
    wait_for_file(tmp_path / "snapshots_complete" / "last.pth", first)
    for folder in ("log_dir", "log_dir", "snapshot_dir"):  # being refused takes nothing away
        done = command("main", *QUICK, f"--{folder}", "other")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"is in use by another run (process {first.pid})" in done.err
    assert not list(Path("snapshots_complete").glob("before_*"))
    done = command("evaluate", "--snapshot", "snapshots_complete/last.pth")
    assert_one_line(done, 2, "--plot_dir plots_complete is in use by another run")
    flags = ("--plot_dir", "elsewhere", "--calibrate", "0.5")
    done = command("evaluate", "--snapshot", "snapshots_complete/last.pth", *flags)
    assert_one_line(done, 2, "--snapshot_dir snapshots_complete is in use by another run")
    first.kill()  # its workers live on for a while
    first.join()
    done = command("main", *long, "1", "--resume", "auto", "--resume_override")
    assert (done.code, "evaluating only" in done.out) == (0, True)


@pytest.mark.slow
def test_memory_and_handles_stay_flat(begin, tmp_path):
    flags = (*DRAWN, "--epochs", "60", "--plot_freq", "1", "--save_best", "--num_workers", "1")
    process = begin(tmp_path / "run", *flags)

    def measured(epoch: int) -> tuple[float, int, int]:
        """Resident MiB, open handles and threads after `epoch`."""
        name = f"snapshot_epoch_{epoch:04d}.pth"
        wait_for_file(tmp_path / "run" / "snapshots_complete" / name, process)
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        handles = list(Path(f"/proc/{process.pid}/fd").iterdir())
        return int(status["VmRSS"].split()[0]) / 1024, len(handles), int(status["Threads"])

    early, late = measured(15), measured(59)
    end(process)
    print(f"after 15 epochs {early}, after 59 {late}")
    assert late[0] - early[0] < 25
    assert late[1] - early[1] <= 3  # a file that is being written, and its directory
    assert late[2] <= early[2]
