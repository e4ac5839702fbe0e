"""Faults of machines, file systems and files: one line or nothing, the right code, nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.commands import QUICK, SHORT, assert_one_line
from support.killed_runs import RUN, assert_same_run
from support.outputs import epoch_of, log_text, rows_of, settings_of, snapshot
from support.pictures import draw_tree

import train
from cifarnet.core import device, log
from cifarnet.reporting import recorders

ROOT = Path(__file__).parents[2]
COMMANDS = ("main", "run_complete_training", "evaluate", "export", "predict", "bench")


def started(name: str, *flags: object, shell: str = "", **environment: str):
    """Runs a command in a process of its own, with warnings as errors; `shell` closes streams."""
    words = [sys.executable, "-W", "error", ROOT / f"{name}.py", *flags]
    return subprocess.run(
        ["bash", "-c", f'"$@" {shell}', "bash", *map(str, words)],
        env=os.environ | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


# --- the streams, warnings and threads of a whole run ---


@pytest.mark.parametrize("name", [*COMMANDS, "compare", "sweep"])
def test_closed_streams_are_as_good_as_dev_null(name):
    done = started(name, "--no_such_flag", shell="<&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize(
    ("name", "flags", "file"),
    [
        ("compare", (ROOT / "results" / "long", "--csv", "FILE"), "runs.csv"),
        ("export", ("--pretrained", "long", "--out", "FILE"), "long.safetensors"),
    ],
)
def test_a_reader_that_ends_early_costs_no_file(tmp_path, name, flags, file):
    words = [tmp_path / file if word == "FILE" else word for word in flags]
    done = started(name, *words, shell="| true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / file).stat().st_size > 0


@pytest.mark.slow
def test_a_run_with_warnings_as_errors_ends_well_and_says_nothing_raw(tmp_path, monkeypatch):
    """Names that fonts lack, more workers than cores, no terminal, one thread."""
    monkeypatch.chdir(tmp_path)
    tree = draw_tree(tmp_path / "pictures", classes=("猫", "🐕"))
    flags = ("--dataset", "folder", "--data_dir", tree, "--batch_size", "6", "--num_workers", "2")
    plots = ("--plot_training", "--plot_evaluation")
    done = started("main", *SHORT, *flags, *plots, shell=">&-", OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    said = next((tmp_path / "log").glob("*.log")).read_text()
    assert ", 1 threads, " in said
    assert "warning: --num_workers 2 is above the 1 " in said
    assert (tmp_path / "plots_complete" / "confusion_matrix.png").exists()


# --- file systems ---


def test_a_file_system_without_niceties_keeps_everything(command, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(1, "Operation not permitted")

    def flush(handle, fsync=os.fsync):
        return refuse() if Path(f"/proc/self/fd/{handle}").is_dir() else fsync(handle)

    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(os, "fsync", flush)
    done = command("main", *SHORT, "--save_best", "--snapshot_freq", "1")
    assert (done.code, done.err) == (0, "")
    assert "could not be written" not in done.out
    kept = sorted(path.name for path in Path("snapshots_complete").iterdir())
    assert kept == ["best_model.pth", "last.pth", "snapshot_epoch_0001.pth"]

    for name in ("last.pth", "snapshot_epoch_0001.pth"):
        (Path("snapshots_complete") / name).unlink()
    done = command("main", *SHORT, "--epochs", "2", "--resume", "auto")
    assert (done.code, done.err) == (0, "")
    assert "skipped: last.pth" in done.out
    assert "resuming after epoch 1 from snapshots_complete/best_model.pth" in done.out


def test_a_log_disk_that_is_full_throughout_ends_with_1(command, monkeypatch):
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        Path("log").mkdir()
        Path("log/a.log").symlink_to("/dev/full")
        monkeypatch.setattr(log, "_new_log_file", lambda folder: (folder / "a.log", full))
        done = command("main", *SHORT)
    assert done.code == 1
    assert "error: the log could not be written to log/a.log" in done.err
    assert Path("snapshots_complete/last.pth").exists()


@pytest.mark.parametrize("name", ["evaluate", "export", "predict"])
def test_a_command_knows_the_home_directory(command, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    pictures = ["a.png"] * (name == "predict")
    assert f"{tmp_path}/me/x.pth" in command(name, "--pretrained=~/x.pth", *pictures).err


# --- imports ---


@pytest.mark.parametrize(
    ("name", "signum"), [*zip(COMMANDS, 3 * [signal.SIGINT, signal.SIGTERM], strict=True)]
)
def test_a_signal_while_torch_is_imported_leaves_no_traceback(tmp_path, monkeypatch, name, signum):
    """A torch that gets the signal as it is imported, and swallows it, as a library may."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text(
        "import os\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(signum)})\n"
        "    for _ in range(100): pass\n"
        "finally:\n"
        "    open('imported', 'w').close()\n"
    )
    (tmp_path / "x.pth").touch()
    flags = {
        "evaluate": ["--snapshot", "x.pth"],
        "export": ["--snapshot", "x.pth"],
        "predict": ["--pretrained", "x.pth", "x.png"],
    }
    done = started(name, *flags.get(name, ()), PYTHONPATH=str(tmp_path))
    assert (tmp_path / "imported").exists()
    assert (done.returncode, done.stderr) == (128 + signum, "")


# --- a CPU without bf16 instructions ---


def test_bf16_without_instructions(command, monkeypatch):
    """--amp gives way, whoever asks for it; --amp_dtype bf16 counts; the log says which it is."""
    float32, slow = "float32 instead of --amp", "warning: bf16 takes many times longer"
    evaluate = ("evaluate", "--snapshot", "snapshots_complete/last.pth", "--no-plot_evaluation")
    Path("recipe.toml").write_text("amp = true\n")
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: False)
    for name, *flags in (
        ("run_complete_training",),
        ("main", "--recipe", "recipe.toml"),
        ("main", "--amp", "--epochs", "2", "--resume", "auto"),
        evaluate,
    ):
        done = command(name, *(() if name == "evaluate" else SHORT), *flags)
        assert (done.code, done.out.count(float32), done.out.count(slow)) == (0, 1, 0), flags
    assert snapshot("last.pth")["origin"]["computed_on"] == "cpu in float32"

    done = command("main", *SHORT, "--amp", "--amp_dtype", "bf16")
    assert (done.code, done.out.count(float32), done.out.count(slow)) == (0, 0, 1)
    assert slow in command(*evaluate, "--amp_dtype", "bf16").out

    monkeypatch.setattr(device, "has_bf16_instructions", lambda: True)
    assert command("run_complete_training", *SHORT).code == 0
    assert snapshot("last.pth")["origin"]["computed_on"] == "cpu in bfloat16"
    assert command("main", *SHORT).code == 0
    done = command("run_complete_training", *SHORT, "--epochs", "2", "--resume", "auto")
    assert (done.code, settings_of()["amp"]) == (0, False)  # the preset gives way to the run
    assert snapshot("last.pth")["origin"]["computed_on"] == "cpu in float32"


# --- disks, numbers and snapshots that go wrong ---


def test_a_snapshot_that_could_not_be_written_is_written_later(
    command, monkeypatch, tmp_path, reference
):
    attempts, write = Counter(), recorders.write_snapshot

    def write_at_the_second_attempt(content, path):
        attempts[path.name] += 1
        if attempts[path.name] == 1:
            raise OSError(28, "No space left on device")
        write(content, path)

    monkeypatch.setattr(recorders, "write_snapshot", write_at_the_second_attempt)
    done = command("main", *RUN)
    assert (done.code, done.err) == (0, "")
    assert "warning: best_model.pth, last.pth could not be written" in log_text()
    assert_same_run(tmp_path, reference)


def test_a_loss_that_stops_being_finite_later_leaves_the_last_good_epoch(command, monkeypatch):
    run_epoch = train.run_epoch

    def poisoned(learner, *args):
        if learner.progress.epoch == 2:
            learner.network.head.bias.data[0] = float("nan")
        return run_epoch(learner, *args)

    monkeypatch.setattr(train, "run_epoch", poisoned)
    done = command("main", *RUN)
    assert_one_line(
        done,
        1,
        "the loss, the gradient or the weights are not finite: epoch 3, step 1 of 3",
        "--lr",
    )
    assert epoch_of("last.pth") == 2
    assert epoch_of("best_model.pth") <= 2


def test_steps_that_the_fp16_scaler_left_out_are_counted_in_the_log(command, monkeypatch):
    scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))  # every gradient overflows
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler)
    done = command("main", *QUICK, "--epochs", "1", "--no-plot_evaluation")
    assert (done.code, done.err) == (0, "")
    row = rows_of(Path("log"))[0]
    assert row["skipped_steps"] == "3"
    assert float(row["clipped"]) == 0  # an infinite gradient was left out, not scaled down
    assert "| 3 steps skipped by the fp16 scaler |" in log_text()


def test_a_changed_weight_is_noticed_and_an_older_snapshot_taken(command, tmp_path, reference):
    shutil.copytree(reference / "snapshots_complete", tmp_path / "snapshots_complete")
    last = Path("snapshots_complete/last.pth")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    done = command("main", *RUN, "--resume", "auto")
    assert done.code == 0
    assert "skipped: snapshots_complete/last.pth is damaged, or not a snapshot" in done.out
    assert "resuming after epoch 4 from snapshots_complete/snapshot_epoch_0004.pth" in done.out
    moved = next(Path("snapshots_complete").glob("before_*"))
    assert (moved / "last.pth").read_bytes() == content
    assert_same_run(tmp_path, reference)
