"""The trials of a sweep: which are run, which are not, and what a stop leaves. A stub stands in
for main.py."""

import copy
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.sweeps import ALONE, FLAGS, GRID, STUB, starts

from cifarnet.core.errors import UserError
from commands import sweep_plan, sweeping
from commands.sweep_file import read_sweep
from commands.sweep_study import Study

PRUNED = f"""{FLAGS}
[search]
sampler = 'random'
trials = 14
prune_after = 1
[search.space]
lr = [0.1, 0.5, 0.6, 0.7]
"""


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


def test_a_grid_runs_once_and_its_table_is_sorted(sweep):
    done = sweep(GRID, "--jobs", 3, "--html", "page.html")
    assert (done.code, done.err) == (0, "")
    assert starts() == {f"trial-000{n}": [0] for n in range(6)}
    table = done.out[done.out.index("\nrun ") :]
    assert [line.split()[0] for line in table.splitlines()[2:5]] == [
        "trial-0001",
        "trial-0002",
        "trial-0000",
    ]
    assert "54.32% ± 0.01%" in table  # 0.9 * 0.6 + 0.003 + 0.0001 * 1.5
    page = Path("page.html").read_text()
    assert "validation accuracy by lr" in page
    assert re.search(
        r"Importance by functional ANOVA, from these trials: lr (9\d|100) %, seed", page
    )
    again = sweep(GRID, "--html", "page.html")
    assert again.code == 0
    assert again.out.startswith("run ")
    assert set(map(len, starts().values())) == {1}
    assert sweep(GRID, "--table").out == again.out.replace("written to page.html\n", "")


@pytest.mark.parametrize(
    ("jobs", "limit", "threads"), [(1, "", "8"), (3, "0", "2"), (9, "64", "1"), (3, "1", "1")]
)
def test_runs_share_the_cores(sweep, monkeypatch, jobs, limit, threads):
    monkeypatch.setattr(sweeping, "available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert sweep(GRID, "--jobs", jobs).code == 0
    files = Path("sweeps/sweep").glob("trial-*/threads.txt")
    assert [path.read_text() for path in files] == [threads] * 6


def test_a_list_fills_in_what_a_setting_leaves_out(sweep):
    text = f"{FLAGS}lr = 0.2\n[[settings]]\n[[settings]]\nlr = 0.4\n[[settings]]\nseed = 5\n"
    assert sweep(text).code == 0
    done = sweep(text, "--dry-run")
    assert done.out == "to run: 0\n"
    table = sweep(text, "--table").out
    assert table.count("trial-") == 2  # of lr 0.2 there are two seeds
    assert len(starts()) == 3


def test_a_failed_trial_is_told_and_started_again_with_the_sweep(sweep):
    text = GRID.replace("0.4", "9.0")
    for failed in ((2, 5), (6, 7)):
        done = sweep(text)
        assert (done.code, done.err) == (1, "error: trials that failed: 2; see above\n")
        for number in failed:
            assert f"trial {number} failed: exit code 1: error: broken\n" in done.out
    assert len(starts()) == 8


def test_a_missing_data_set_is_fetched_before_the_first_run(sweep, monkeypatch):
    """Else one run fetches it, and the others fail meanwhile."""

    def read_cifar(settings, say):
        raise UserError(f"cannot get {settings.dataset}")

    monkeypatch.setattr(sweeping, "read_cifar", read_cifar)
    done = sweep(GRID.replace("digits", "cifar10"))
    assert (done.code, done.err, starts()) == (2, "error: cannot get cifar10\n", {})
    monkeypatch.setattr(sweeping, "read_cifar", lambda settings, say: None)
    assert sweep(GRID.replace("digits", "cifar10")).code == 0
    monkeypatch.setattr(sweeping, "read_cifar", read_cifar)
    assert sweep(GRID.replace("digits", "cifar10")).code == 0  # nothing is left to run


def test_a_search_has_so_many_trials_and_may_get_more(sweep):
    search = "[search]\ntrials = {}\n[search.space]\nlr = {{low = 0.1, high = 1.0, log = true}}\n"
    done = sweep(FLAGS + search.format(3), "--html", "page.html")
    assert (done.code, len(starts())) == (0, 3)
    first = done.out
    assert "validation accuracy by lr" in Path("page.html").read_text()
    done = sweep(FLAGS + search.format(5))
    assert (done.code, len(starts())) == (0, 5)
    once = sweep(FLAGS + search.format(5), "--sweep_dir", "once")
    values = [line for line in once.out.splitlines() if line.startswith("trial ") and "lr" in line]
    parts = [line for line in (first + done.out).splitlines() if "lr 0" in line]
    assert values == parts  # the values do not depend on the interruption


def test_the_median_rule_ends_trials_early(sweep):
    done = sweep(PRUNED, "--jobs", 2)
    pruned = re.findall(r"trial (\d+): below the median, ended after epoch [123]", done.out)
    assert (done.code, bool(pruned)) == (0, True)
    for number in pruned:
        assert f"trial {number}: lr 0.1\n" in done.out or f"trial {number}: lr 0.5\n" in done.out
        signals = Path(f"sweeps/sweep/trial-{int(number):04d}/signals.txt")
        # a run that is just ending has no handler any more
        assert not signals.exists() or signals.read_text() == f"{signal.SIGTERM:d}\n"
    assert done.out.count(": validation accuracy") == 14 - len(pruned)
    assert done.out.count(" (ended early)") == len(pruned)


def test_a_run_that_breaks_while_it_ends_has_failed(sweep, monkeypatch):
    monkeypatch.setenv("STUB_EXIT", "7")
    done = sweep(PRUNED, "--jobs", 2)
    failed = re.findall(r"trial (\d+) failed: exit code 7", done.out)
    assert (done.code, bool(failed)) == (1, True)
    table = done.out[done.out.index("\nrun ") :]
    assert not [number for number in failed if f"trial-{int(number):04d}" in table]


def test_a_trial_that_another_process_just_finished_is_not_taken(sweep, tmp_path, monkeypatch):
    (tmp_path / "sweep.toml").write_text(GRID)
    first, second = (Study(read_sweep(tmp_path / "sweep.toml"), tmp_path) for _ in range(2))
    first.enqueue()
    assert first.next_trial().number == 0
    before, now = copy.deepcopy(first.trials()), second.trials
    lists = iter([before])
    monkeypatch.setattr(second, "trials", lambda: next(lists, None) or now())
    first.finish(0, 0.5, TrialState.COMPLETE)
    assert second.next_trial().number == 1
    second.finish(1, 0.5, TrialState.COMPLETE)


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


def test_a_dry_run_prints_commands_and_time_and_writes_nothing(sweep, monkeypatch):
    asked = {}
    monkeypatch.setattr(sweep_plan, "step", lambda device, **flags: asked.update(flags) or 100.0)
    images = "limit_train = 200\nbatch_size = 20\nimage_sizes = '16,32'\n"
    text = GRID.replace("[grid]", f"{images}[grid]")
    done = sweep(text, "--dry-run")
    assert (done.code, done.err, Path("sweeps").exists()) == (0, "", False)
    *commands, count, estimate = done.out.splitlines()
    common = ["--dataset", "digits", "--limit_train", "200", "--val_fraction", "0.5"]
    common += ["--epochs", "3", "--batch_size", "20", "--image_sizes", "16,32"]
    last = ["--lr", "0.4", "--seed", "2", "--run_dir", "sweeps/sweep/trial-0005"]
    assert (len(commands), count) == (6, "to run: 6")
    assert shlex.split(commands[-1]) == [
        *(sys.executable, str(STUB), *common, *last),
        *("--resume", "auto"),
    ]
    # 6 runs of 100 images: two epochs at 16 pixels take 1 s each, one at 32 takes 4 s
    assert estimate.startswith("about 0:00:36, one after the other, by training steps")
    assert (asked["batch_size"], asked["lr"], asked["image_sizes"]) == (20, 0.2, "16,32")


def test_after_the_first_epochs_the_time_follows_from_them(sweep):
    assert sweep(GRID.replace("0.4", "9.0")).code == 1
    again = sweep(GRID.replace("0.4", "9.0"), "--dry-run").out
    assert re.findall(r"trial-\d+", again) == [
        "trial-0006",
        "trial-0007",
    ]  # in place of failed ones
    assert "to run: 2\nabout 0:00:12, one after the other, by " in again
    search = FLAGS + "[search]\ntrials = {}\n[search.space]\nlr = [0.1, 0.2]\n"
    assert sweep(search.format(2), "--sweep_dir", "search").code == 0
    done = sweep(search.format(12), "--sweep_dir", "search", "--dry-run")
    assert "and 10 trials whose values the search chooses\nto run: 10\n" in done.out
    # 10 trials of 3 epochs of 2 seconds
    assert "about 0:01:00, one after the other, by 6 epochs so far" in done.out
