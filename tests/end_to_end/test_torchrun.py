"""The same command under torchrun, as processes on the CPU that exchange by gloo."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import QUICK, QUIET
from support.outputs import figures, log_text, rows_of
from support.ranks import SETTINGS, trained

from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.core.launch import ALONE

ROOT = Path(__file__).parents[2]
MAIN = str(ROOT / "main.py")


@pytest.fixture
def torchrun(tmp_path, monkeypatch):
    """`torchrun(ranks, script, *flags, restarts=0)` -> the process.

    It runs in an empty directory and writes to `output` there.
    """
    monkeypatch.chdir(tmp_path)
    begun = []

    def run(ranks: int, script: str, *flags: object, restarts: int = 0) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={ranks}", f"--max-restarts={restarts}"]
        command += [script, *map(str, flags)]
        with Path("output").open("w") as output:
            begun.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        return begun[-1]

    yield run
    for process in begun:
        if process.poll() is None:
            process.terminate()  # it ends its ranks
            process.wait(60)


def output() -> str:
    return Path("output").read_text()


def errors() -> list[str]:
    return re.findall(r"^error: .*", output(), re.MULTILINE)


def wait_for(condition, process: subprocess.Popen):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert process.poll() is None, output()
        assert time.monotonic() < end, output()
        time.sleep(0.05)
    return found


def pid_of(rank: int, process: subprocess.Popen) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(
        int(pid)
        for pid in children
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text()
    )


def test_ranks_equal_one_process_on_the_same_batches_and_each_other(torchrun):
    process = torchrun(2, ROOT / "tests" / "support" / "ranks.py", "results.pth")
    assert process.wait(180) == 1  # torchrun's own
    results = torch.load("results.pth")
    for name in SETTINGS:
        ours, alone = results[name], trained(ALONE, name)
        for key, value in alone["model"].items():
            torch.testing.assert_close(
                ours["model"][key], value, rtol=1e-4, atol=1e-5, msg=f"{name} {key}"
            )
        for row, expected in zip(ours["history"], alone["history"], strict=True):
            for key in ("train_loss", "grad_norm", "test_loss"):
                assert row[key] == pytest.approx(expected[key], rel=1e-4), (name, key)
            for key in ("train_accuracy", "test_accuracy", "clipped", "lr"):
                assert row[key] == expected[key], (name, key)
    assert results["clipped"]["history"][0]["clipped"] > 0
    first, second = results["states"]  # dropout, augmentation and normalisation are each rank's own
    assert torch.equal(first, second)
    assert len(set(results["seeds"])) == 2
    assert errors() == ["error: rank 1: a thing that only this rank finds"]
    assert "ranks.py FAILED" in output()[output().index("error: rank 1") :]


@pytest.mark.slow
def test_three_ranks_count_each_image_once_and_one_may_go_on(torchrun, command):
    """The last batch has one image: two ranks have none of it."""
    flags = (*QUICK, "--limit_train=55", "--batch_size=18", "--accumulate=2", "--save_best")
    process = torchrun(3, MAIN, *flags)
    assert process.wait(90) == 0, output()
    assert "torchrun --nproc_per_node=3 main.py" in log_text()
    assert "ranks: 3, each with" in log_text()
    assert "Warning" not in output()
    assert output().count("epoch 2/2 |") == output().count("main.py --network lite") == 1
    assert {path.name for path in Path("snapshots_complete").iterdir()} == {
        "last.pth", "best_model.pth", "snapshot_epoch_0001.pth", "snapshot_epoch_0002.pth"
    }  # fmt: skip
    ours, rows = figures(), rows_of(Path("log"))
    assert len(list(Path("log").glob("*.log"))) == 1
    assert ours["images"] == np.sum(ours["confusion_matrix"]) == 40
    for name, whose in (("last.pth", "last"), ("best_model.pth", "best")):
        snapshot = f"snapshots_complete/{name}"
        assert command("evaluate", "--snapshot", snapshot, "--plot_dir", "again", *QUIET).code == 0
        again = figures(Path("again"))
        for key in ("top1", "top3", "top5"):
            assert ours[whose][key] == again[key]
        assert ours[whose]["loss"] == pytest.approx(again["loss"], rel=1e-5)
        assert again["top1"] == float(rows[again["epoch"] - 1]["test_accuracy"])
        if whose == "last":
            assert ours["confusion_matrix"] == again["confusion_matrix"]
            assert ours["per_class"] == again["per_class"]
    done = command("main", *flags, "--epochs", "3", "--resume", "auto")
    assert (done.code, done.err) == (0, "")
    assert "that run had 3 ranks, this one has 1" in done.out


@pytest.mark.slow
def test_two_ranks_mix_their_parts(torchrun):
    """The last batch has one image: there is nothing to mix it with."""
    flags = (*QUICK, "--limit_train=41", "--accumulate=2", "--mixup=0.2", "--cutmix=1")
    assert torchrun(2, MAIN, *flags, "--batch_size=4").wait(90) == 1
    (error,) = errors()
    assert "--batch_size 4 has one image in each of 4 parts" in error
    assert error.endswith("; use --batch_size 8 or more")
    assert torchrun(2, MAIN, *flags).wait(90) == 0, output()
    assert output().count("epoch 2/2 |") == 1


@pytest.mark.slow
def test_after_a_kill_torchruns_restart_goes_on_and_a_signal_to_one_rank_ends_all(torchrun):
    flags = (*QUICK, "--epochs", "5000", "--snapshot_freq", "0", "--resume", "auto")
    process = torchrun(2, MAIN, *flags, restarts=1)
    last = Path("snapshots_complete/last.pth")
    wait_for(last.exists, process)
    os.kill(pid_of(0, process), signal.SIGKILL)
    wait_for(lambda: "resuming after epoch" in output(), process)
    first = int(re.search(r"resuming after epoch (\d+)", output())[1])
    lost = errors()  # none where torchrun, which ends the other rank too, was faster
    assert len(lost) <= 1
    assert all(error.startswith("error: rank 1: lost contact with another rank") for error in lost)
    wait_for(lambda: read_snapshot(last).epoch > first, process)
    os.kill(pid_of(1, process), signal.SIGTERM)
    assert process.wait(60) == 1
    assert errors() == lost
    codes = set(re.findall(r"exitcode  : (-?\d+)", output()))  # torchrun saw one rank or both
    assert codes == {"143"}, output()
    epoch = re.search(r"SIGTERM: ended after epoch (\d+); continue with:", log_text())[1]
    assert read_snapshot(last).epoch == int(epoch)
    assert "  torchrun --nproc_per_node=2 main.py" in output()
    assert not list(Path("snapshots_complete").glob(".*"))
