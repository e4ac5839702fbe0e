"""Runs that are killed, stopped, refused or damaged: nothing is lost, and no result changes."""

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.commands import DRAWN, QUICK
from support.outputs import assert_same_state, epoch_of, log_text, rows_of, snapshot

import main
import plots
import train
from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.core.log import RunLog
from cifarnet.reporting import recorders

RUN = (
    *(*QUICK, "--epochs", "5", "--save_best", "--plot_freq", "2", "--plot_training"),
    *("--snapshot_freq", "2", "--keep_snapshots", "1", "--image_sizes", "8"),
)
LONG = (*QUICK, "--plot_training", "--epochs", "5000", "--plot_freq", "0", "--snapshot_freq", "0")
STATE = (
    *("weights", "optimizer", "scheduler", "scaler", "comparable_after", "history"),
    "random_state",
)


# --- in the process of a run ---


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, owner: object, name: str, *, after: bool = False) -> None:
    """Has the process kill itself at the `number`-th call of `owner.name`.

    It dies before the call does its work, or `after` it.
    """
    original, calls = getattr(owner, name), itertools.count(1)

    def fatal(*args, **kwargs):
        last = next(calls) == number
        if last and not after:
            if name == "savefig":
                args[1].write(b"half a picture")
                args[1].flush()
            kill_myself()
        result = original(*args, **kwargs)
        if last:
            kill_myself()
        return result

    setattr(owner, name, fatal)


FAULTS = {  # counted from the start of the log
    "inside a write": lambda number: at_call(number, os, "fsync"),
    "before a renaming": lambda number: at_call(number, Path, "replace"),
    "after a renaming": lambda number: at_call(number, Path, "replace", after=True),
    "inside a plot": lambda number: at_call(number, plots.Figure, "savefig"),
}
EARLY_FAULTS = {
    "while folders are tried": lambda number: at_call(number, Path, "replace", after=True),
}


def once_the_log_is_open(work: Callable[[], None]) -> None:
    open_log = RunLog.open

    def open_log_and_work(log, directory):
        open_log(log, directory)
        work()

    RunLog.open = open_log_and_work


def live(directory: Path, flags: tuple[str, ...], fault: str, number: int) -> None:
    """The process of one run, in a session of its own, as a terminal would start it."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of workers: Linux's default again
    os.chdir(directory)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    if fault in EARLY_FAULTS:
        EARLY_FAULTS[fault](number)
    elif fault:
        once_the_log_is_open(lambda: FAULTS[fault](number))
    sys.exit(main.main(flags))


# --- in the test ---


@pytest.fixture(scope="module")
def processes():
    """Starts processes quickly: by a fork of one that has only imported everything."""
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver")
    slow = [
        "commands.training_run",
        "torchsummary",
        "sklearn.datasets",
        "sklearn.metrics",
        "albumentations",
    ]
    context.set_forkserver_preload([__name__, *slow, "torch._dynamo"])  # imported once for all
    yield context.Process
    if former is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = former


@pytest.fixture
def begin(processes):
    """`begin(directory, *flags)` -> a run in its own process, which ends with the test."""
    begun = []

    def run(directory: Path, *flags: str, fault: str = "", number: int = 0):
        directory.mkdir(exist_ok=True)
        flags = tuple(str(flag) for flag in flags)
        process = processes(target=live, args=(directory, flags, fault, number))
        process.start()
        begun.append(process)
        return process

    yield run
    for process in begun:
        if process.is_alive():
            process.kill()
        process.join()


def end(process, code: int = 0) -> None:
    process.join(120)
    assert process.exitcode == code


def wait_for(condition: Callable[[], object], process) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_an_epoch(directory: Path, process) -> None:
    wait_for((directory / "snapshots_complete" / "last.pth").exists, process)


def assert_same_run(directory: Path, reference: Path) -> None:
    """Asserts that both have the same snapshots, best_model.pth included, with the same content.

    A best_model.pth that was ahead of last.pth at the kill is moved aside and made again.
    """
    ours, theirs = directory / "snapshots_complete", reference / "snapshots_complete"
    names = sorted(p.name for p in theirs.iterdir())
    assert sorted(p.name for p in ours.iterdir() if p.is_file()) == names
    for name in names:
        a, b = (torch.load(where / name, weights_only=True) for where in (ours, theirs))
        for key in STATE:
            assert_same_state(a[key], b[key], f"{name} {key}")


def assert_all_intact(directory: Path) -> None:
    for path in directory.glob("snapshots_complete/[!.]*.pth"):
        read_snapshot(path)
    for path in directory.glob("plots_complete/[!.]*.png"):
        with Image.open(path) as image:
            image.load()


@pytest.fixture(scope="module")
def reference(processes, tmp_path_factory) -> Path:
    """The directory of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("reference")
    process = processes(target=live, args=(directory, RUN, "", 0))
    process.start()
    end(process)
    return directory


def finish_and_compare(begin, directory: Path, reference: Path) -> None:
    end(begin(directory, *RUN, "--resume", "auto"))
    assert_same_run(directory, reference)
    assert not list(directory.glob("*/.*"))


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        ("inside a write", 9),
        ("before a renaming", 8),
        ("after a renaming", 3),
        ("inside a plot", 3),
        ("while folders are tried", 3),
    ],
)
def test_a_run_killed_at_a_bad_moment_goes_on_unchanged(begin, tmp_path, reference, fault, number):
    end(begin(tmp_path / "run", *RUN, fault=fault, number=number), -signal.SIGKILL)
    assert_all_intact(tmp_path / "run")
    finish_and_compare(begin, tmp_path / "run", reference)


def kill_at_random(
    begin, directory: Path, longest: float, workers: int, random: random.Random
) -> bool:
    """Starts or resumes a run and kills it; says whether that came before its end."""
    process = begin(directory, *RUN, "--resume", "auto", "--num_workers", workers)
    process.join(random.uniform(0, longest))
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    assert_all_intact(directory)
    return process.exitcode != 0


@pytest.mark.slow
def test_a_run_killed_at_random_moments(begin, tmp_path, reference):
    moments = random.Random()
    run = tmp_path / "run"
    assert sum(kill_at_random(begin, run, 2, workers, moments) for workers in (0, 2, 0))
    finish_and_compare(begin, run, reference)


@pytest.mark.slow
def test_a_run_killed_at_many_random_moments(begin, tmp_path, reference):
    """After each kill one copy of what is left runs to its end, and another is killed again."""
    moments, kills, run = random.Random(), {"random": 0}, tmp_path / "run"
    started = time.monotonic()
    finish_and_compare(begin, tmp_path / "copy", reference)
    longest = time.monotonic() - started
    while kills["random"] < 16:
        if kill_at_random(begin, run, longest, kills["random"] % 3, moments):
            kills["random"] += 1
            shutil.rmtree(tmp_path / "copy")
            shutil.copytree(run, tmp_path / "copy")
            finish_and_compare(begin, tmp_path / "copy", reference)
        else:
            assert_same_run(run, reference)
            shutil.rmtree(run)
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
    assert sum(kills.values()) >= 20
    assert all(kills.values())


# --- signals ---


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_after_the_step_and_the_command_printed_goes_on(
    begin, tmp_path, reference, signum, code, workers
):
    process = begin(tmp_path / "run", *RUN, "--num_workers", workers)
    wait_for_an_epoch(tmp_path / "run", process)
    os.killpg(process.pid, signum)  # as a terminal and a service manager do: to the workers too
    end(process, code)
    output = (tmp_path / "run" / "output").read_text()
    assert "Traceback" not in output
    assert f"{signum.name}: ended after epoch " in output
    assert output.rstrip().endswith("--resume auto")
    assert (tmp_path / "run" / "plots_complete" / "training_curves.png").exists()
    again = output.splitlines()[-1].split()
    assert again[:2] == ["python", "main.py"]
    end(begin(tmp_path / "run", *again[2:]))
    assert_same_run(tmp_path / "run", reference)


def stop_in_a_step(learner, objective, batches, plan, stop) -> None:
    """Stands for `train.run_epoch`: SIGTERM comes during the first step."""
    os.kill(os.getpid(), signal.SIGTERM)
    stop()


def test_a_run_stopped_before_its_first_epoch_can_be_resumed(command, monkeypatch):
    """Whatever ends a run that goes on from elsewhere, --resume auto does not start anew."""
    assert command("main", *QUICK, "--epochs", "1", "--snapshot_dir", "a").code == 0
    elsewhere = (*QUICK, "--snapshot_dir", "b", "--resume", "a/last.pth")
    with monkeypatch.context() as patched:
        patched.setattr(train, "run_epoch", stop_in_a_step)
        done = command("main", *QUICK)
        assert done.code == 143
        assert done.out.rstrip().endswith(QUICK[-1])  # nothing to resume
        done = command("main", *elsewhere)
        assert done.code == 143
        assert done.out.rstrip().endswith("--snapshot_dir b --resume b/last.pth")
    done = command("main", *elsewhere, "--resume", "auto")
    assert (done.code, "resuming after epoch 1 from b/last.pth" in done.out) == (0, True)


def test_a_run_resumed_by_its_path_and_stopped_goes_on_with_the_kept_settings(command, monkeypatch):
    assert command("main", *QUICK, "--epochs", "1", "--snapshot_dir", "a").code == 0
    with monkeypatch.context() as patched:
        patched.setattr(train, "run_epoch", stop_in_a_step)
        done = command("main", "--resume", "a/last.pth", "--epochs", "2")
    again = done.out.splitlines()[-1].split()
    assert (done.code, again[:2]) == (143, ["python", "main.py"])
    assert command("main", *again[2:]).code == 0
    assert epoch_of("last.pth", "a") == 2


def test_a_finished_run_stopped_while_it_is_evaluated_is_not_mixed_up_with_another(
    command, monkeypatch
):
    run = (*QUICK, "--epochs", "1", "--snapshot_dir")
    for place in ("a", "b"):
        assert command("main", *run, place).code == 0
    stop = lambda *args: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr("commands.run_report.evaluate_classifier", stop)
    done = command("main", *run, "b", "--resume", "a/last.pth")
    assert done.code == 143
    assert done.out.rstrip().endswith("--snapshot_dir b --resume a/last.pth")


def test_a_second_signal_ends_at_once(command, monkeypatch):
    """It comes before the first is dealt with, and ends the process: no `finally` delays it."""

    class LeftAtOnce(BaseException):
        pass

    def leave(code):
        raise LeftAtOnce(code)

    def two_signals(*args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr("cifarnet.core.signals.os._exit", leave)
    monkeypatch.setattr(train, "run_epoch", two_signals)
    with pytest.raises(LeftAtOnce, match="143"):
        command("main", *QUICK)


def test_a_signal_while_images_are_read_ends_too(command, monkeypatch):
    stop = lambda *args: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr("commands.training_run.load_splits", stop)
    done = command("main", *QUICK)
    assert (done.code, done.err) == (143, "")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# --- two at once ---


def test_a_second_run_on_the_same_directory_is_refused_while_the_first_lives(
    begin, tmp_path, command
):
    first = begin(tmp_path, *LONG, "--num_workers", "2")
    wait_for_an_epoch(tmp_path, first)
    for _ in range(2):  # being refused takes nothing away from the first
        done = command("main", *QUICK, "--log_dir", "other")
        assert done.code == 2
        assert done.err.startswith(
            "error: --snapshot_dir snapshots_complete is in use by another run "
            f"(process {first.pid})"
        )
        assert done.err.count("\n") == 1
    assert not list(Path("snapshots_complete").glob("before_*"))
    first.kill()  # its workers live on for a while
    first.join()
    resumed = ("--resume", "auto", "--resume_override")
    done = command("main", *LONG, "--epochs", "1", *resumed)
    assert done.code == 0
    assert "evaluating only" in done.out


# --- disks that fail ---


def fail_at(monkeypatch, fails: Callable[[int, str], bool]) -> None:
    """Has writing a snapshot fail where `fails(attempt, name)`. Attempts count from 1 by name."""
    attempts, write = Counter(), recorders.write_snapshot

    def write_or_fail(content, path):
        attempts[path.name] += 1
        if fails(attempts[path.name], path.name):
            raise OSError(28, "No space left on device")
        write(content, path)

    monkeypatch.setattr(recorders, "write_snapshot", write_or_fail)


def test_a_snapshot_that_could_not_be_written_is_written_later(
    command, monkeypatch, tmp_path, reference
):
    fail_at(monkeypatch, lambda attempt, name: attempt == 1)
    done = command("main", *RUN)
    assert (done.code, done.err) == (0, "")
    assert (
        "warning: best_model.pth, last.pth could not be written to snapshots_complete "
        "(No space left on device); it will be tried again\n"
    ) in log_text()
    assert_same_run(tmp_path, reference)


def test_a_best_model_that_never_could_be_written_ends_with_1(command, monkeypatch):
    fail_at(monkeypatch, lambda attempt, name: name == "best_model.pth")
    done = command("main", *RUN, "--select", "best")
    assert done.code == 1
    words = "best_model.pth could not be written to snapshots_complete; see the log"
    assert done.err == f"error: {words}\n"
    assert epoch_of("last.pth") == 5
    assert Path("plots_complete/metrics.json").exists()


def test_curves_that_could_not_be_drawn_end_a_whole_run_with_1(command, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "training_curves", fail)
    done = command("main", *RUN)
    assert done.code == 1
    assert done.err == "error: the curves could not be drawn in plots_complete; see the log\n"
    assert epoch_of("last.pth") == 5
    assert Path("plots_complete/metrics.json").exists()


# --- numbers that go wrong ---


def test_a_loss_that_stops_being_finite_later_leaves_the_last_good_epoch(command, monkeypatch):
    run_epoch = train.run_epoch

    def poisoned(learner, *args):
        if learner.progress.epoch == 2:
            learner.network.head.bias.data[0] = float("nan")
        return run_epoch(learner, *args)

    monkeypatch.setattr(train, "run_epoch", poisoned)
    done = command("main", *RUN)
    assert done.code == 1
    assert done.err.startswith(
        "error: the loss is no longer finite: epoch 3, step 1 of 3, learning rate 0.0"
    )
    assert done.err.count("\n") == 1
    assert "--lr" in done.err
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


# --- flags that change nothing, damage, rotation ---


def test_flags_that_do_not_alter_the_result_pass(command, tmp_path, reference):
    shutil.copytree(reference, tmp_path / "copy")
    copy = tmp_path / "copy" / "snapshots_complete"
    (copy / "last.pth").unlink()
    others = (
        *("--num_workers", "1", "--no-plot_training", "--plot_dir", "p", "--log_dir", "l"),
        *("--snapshot_freq", "5"),
    )
    resumed = ("--snapshot_dir", "copy/snapshots_complete", "--resume", "auto")
    done = command("main", *RUN, *others, *resumed)
    assert (done.code, done.err) == (0, "")
    assert "changed: num_workers 0 -> 1" in done.out
    ours, theirs = (
        snapshot("last.pth", where) for where in (copy, reference / "snapshots_complete")
    )
    for key in STATE:
        assert_same_state(ours[key], theirs[key], key)


def test_a_changed_weight_is_noticed_and_an_older_snapshot_taken(command, tmp_path, reference):
    shutil.copytree(reference / "snapshots_complete", tmp_path / "snapshots_complete")
    last = Path("snapshots_complete/last.pth")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    done = command("main", *RUN, "--resume", "auto")
    assert done.code == 0
    assert "passed over: snapshots_complete/last.pth is damaged, or not a snapshot" in done.out
    assert "resuming after epoch 4 from snapshots_complete/snapshot_epoch_0004.pth" in done.out
    moved = next(Path("snapshots_complete").glob("before_*"))
    assert (moved / "last.pth").read_bytes() == content
    assert_same_run(tmp_path, reference)


def test_old_numbered_snapshots_go_and_others_stay(command):
    Path("snapshots_complete").mkdir()
    Path("snapshots_complete/snapshot_epoch_mine.pth").write_text("mine")
    assert command("main", *QUICK, "--epochs", "4", "--keep_snapshots", "2").code == 0
    numbered = {f"snapshot_epoch_{which}.pth" for which in ("0003", "0004", "mine")}
    assert {path.name for path in Path("snapshots_complete").iterdir()} == {"last.pth"} | numbered


# --- many epochs ---


@pytest.mark.slow
def test_memory_and_handles_stay_flat(begin, tmp_path):
    flags = (*DRAWN, "--epochs", "60", "--plot_freq", "1", "--save_best", "--num_workers", "1")
    run = tmp_path / "run"
    process = begin(run, *flags)

    def measured(epoch: int) -> tuple[float, int, int]:
        """Resident MiB, open handles and threads after `epoch`."""
        written = run / "snapshots_complete" / f"snapshot_epoch_{epoch:04d}.pth"
        wait_for(written.exists, process)
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
