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
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import TrialState
from support.commands import without_privileges

from commands import sweeping
from commands.sweep_file import read_sweep
from commands.sweep_study import Study

ROOT = Path(__file__).parents[2]
STUB = ROOT / "tests" / "support" / "stub_main.py"
FLAGS = "[flags]\nval_fraction = 0.5\nepochs = 3\n"
GRID = f"seeds = [1, 2]\n{FLAGS}[grid]\nlr = [0.2, 0.6, 0.4]\n"
PRUNED = f"""{FLAGS}
[search]
sampler = 'random'
trials = 14
prune_after = 1
[search.space]
lr = [0.1, 0.5, 0.6, 0.7]
"""
ALONE = f"""  # the command in a process of its own, with the stub
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}]
import commands.sweeping, sweep
commands.sweeping.MAIN, commands.sweeping.POLL = Path({str(STUB)!r}), 0.05
sys.exit(sweep.main(["sweep.toml"]))
"""
EACH = f"""  # table, plan and command in one process, each followed by its exit code
import sys
sys.path[:0] = [{str(ROOT)!r}]
import sweep
for flags in (["--table"], ["--dry-run"], []):
    print("exit code", sweep.main([*sys.argv[1:], *flags]))
"""


@pytest.fixture
def sweep(command, monkeypatch):
    """Writes sweep.toml, and runs sweep.py on it: `sweep(text, *flags)` -> `Outcome`."""
    monkeypatch.setattr(sweeping, "MAIN", STUB)
    monkeypatch.setattr(sweeping, "POLL", 0.05)
    monkeypatch.setenv("COLUMNS", "300")  # the table in one block

    def run(text, *flags):
        Path("sweep.toml").write_text(text)
        return command("sweep", "sweep.toml", *flags)

    return run


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


def starts() -> dict[str, list[int]]:
    """The epochs that each start of a run found done, by the folder of the run."""
    files = sorted(Path("sweeps/sweep").glob("trial-*/starts.txt"))
    return {path.parent.name: [int(line) for line in path.read_text().split()] for path in files}


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
    return len(files[0].read_text().splitlines()) - 1 if files else 0


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


def test_a_lock_that_a_killed_sweep_left_is_released_in_a_moved_folder_too(sweep, monkeypatch):
    Path("sweep.toml").write_text(GRID)
    killed = "from optuna.storages.journal import JournalFileOpenLock as Lock\n"
    killed += "import os\nLock.release = lambda lock: os._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", killed + ALONE]).returncode == 9
    assert Path("sweeps/sweep/study.log.lock").exists()
    Path("sweeps/sweep").rename("moved")
    monkeypatch.setattr(JournalFileOpenLock.__init__, "__defaults__", (3,))  # seconds, not 30
    assert sweep(GRID, "--sweep_dir", "moved").code == 0


def test_a_cut_line_of_the_journal_is_dropped(sweep):
    search = FLAGS + "[search]\ntrials = {}\n[search.space]\nlr = [0.2, 0.4]\n"
    assert sweep(search.format(2)).code == 0
    with Path("sweeps/sweep/study.log").open("a") as file:
        file.write('{"op_code": 4, "wor')  # the disk was full
    for trials in (3, 4):
        done = sweep(search.format(trials))
        assert (done.code, done.err) == (0, "")
    assert starts() == {f"trial-000{n}": [0] for n in range(4)}


def test_a_stop_reaches_each_run_once_and_leaves_it_to_be_resumed(alone):
    for epoch, signum in ((1, signal.SIGINT), (2, signal.SIGTERM)):
        let_epochs_end(epoch)
        stopped = alone()
        wait_until(lambda epoch=epoch: rows("trial-0000") == epoch)
        os.kill(stopped.pid, signum)
        out, _ = stopped.communicate(timeout=60)
        assert stopped.returncode == 128 + signum
        assert b"stopped; repeat the command to go on" in out
    signals = Path("sweeps/sweep/trial-0000/signals.txt").read_text()
    assert signals == f"{signal.SIGINT:d}\n{signal.SIGTERM:d}\n"
    let_epochs_end(3)
    assert alone().wait(60) == 0
    assert starts()["trial-0000"] == [0, 1, 2]


def test_a_dry_run_prints_commands_and_time_and_writes_nothing(sweep):
    text = GRID.replace("[grid]", "dataset = 'digits'\nbatch_size = 20\n[grid]")
    done = sweep(text, "--dry-run")
    assert (done.code, done.err, Path("sweeps").exists()) == (0, "", False)
    *commands, count, estimate = done.out.splitlines()
    common = ["--dataset", "digits", "--val_fraction", "0.5", "--epochs", "3", "--batch_size", "20"]
    last = ["--lr", "0.4", "--seed", "2", "--run_dir", "sweeps/sweep/trial-0005"]
    assert (len(commands), count) == (6, "to run: 6")
    assert shlex.split(commands[-1]) == [
        *(sys.executable, str(STUB), *common, *last),
        *("--resume", "auto"),
    ]
    assert re.match(r"about \d+:\d\d:\d\d, one after the other, by training steps", estimate)


def test_after_the_first_epochs_the_time_follows_from_them(sweep):
    assert sweep(GRID.replace("0.4", "9.0")).code == 1
    assert sweep(GRID.replace("0.4", "9.0"), "--dry-run").out == "to run: 0\n"
    search = FLAGS + "[search]\ntrials = {}\n[search.space]\nlr = [0.1, 0.2]\n"
    assert sweep(search.format(2), "--sweep_dir", "search").code == 0
    done = sweep(search.format(12), "--sweep_dir", "search", "--dry-run")
    assert "and 10 trials whose values the search chooses\nto run: 10\n" in done.out
    # 10 trials of 3 epochs of 2 seconds
    assert "about 0:01:00, one after the other, by 6 epochs so far" in done.out


@pytest.mark.parametrize(
    "content", [b"garbage\nmore\n", b'{"a": 1}\n[]\n', b"\xff\xfe\n\n", b"[]\n"]
)
def test_a_damaged_journal_is_refused_in_one_line(sweep, content):
    Path("sweeps/sweep").mkdir(parents=True)
    Path("sweeps/sweep/study.log").write_bytes(content)
    for flags in ((), ("--table",), ("--dry-run",)):
        done = sweep(GRID, *flags)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert "study.log is damaged, or not a journal of Optuna" in done.err


def test_a_changed_sweep_needs_another_folder(sweep):
    assert sweep(GRID).code == 0
    for flags in ((), ("--dry-run",), ("--table",)):
        done = sweep(GRID.replace("epochs = 3", "epochs = 4"), *flags)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "sweeps/sweep holds another sweep, or this one before it was changed" in done.err


def test_the_table_of_a_folder_that_may_only_be_read(sweep, tmp_path):
    """A run that cannot be read is not one that is not there: the table says that it lacks it."""
    assert sweep(GRID).code == 0
    folder = tmp_path / "sweeps" / "sweep"
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    (folder / "trial-0003" / "log").chmod(0o000)
    try:
        done = without_privileges("-c", EACH, tmp_path / "sweep.toml", "--sweep_dir", folder)
    finally:
        for path in paths:
            path.chmod(0o755)
    table, code, planned, *codes = re.split(r"exit code (\d)\n", done.stdout)
    assert (code, planned, codes) == ("0", "to run: 0\n", ["0", "", "2", ""])
    assert f"warning: left out: {folder}/trial-0003 (Permission denied)\n" in table
    counts = re.findall(r"^trial-\d+ (?:and \d more)? +(\d) ", table, re.MULTILINE)
    assert sorted(map(int, counts)) == [1, 2, 2]  # seeds of a setting
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"cannot open {folder}/.sweep.lock (Permission denied)" in done.stderr
