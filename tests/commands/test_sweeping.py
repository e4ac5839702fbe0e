"""The trials of a sweep: which are run, and which are not. A stub stands in for main.py."""

import copy
import errno
import re
import shlex
import signal
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from support.sweeps import FLAGS, GRID, STUB, starts

from cifarnet.core.errors import UserError
from cifarnet.core.files import InUseError
from commands import sweep_plan, sweep_study, sweeping
from commands.sweep_file import read_sweep
from commands.sweep_page import importances
from commands.sweep_study import Study

PRUNED = f"""{FLAGS}
[search]
sampler = 'random'
trials = 14
prune_after = 1
[search.space]
lr = [0.1, 0.5, 0.6, 0.7]
"""


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
    assert "49.32% ± 0.01%" in table  # the last epoch: 0.9 * 0.6 + 0.003 + 0.0001 * 1.5 - 0.05
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


def test_no_trial_ends_before_prune_after(tmp_path):
    (tmp_path / "sweep.toml").write_text(PRUNED.replace("prune_after = 1", "prune_after = 3"))
    study = Study(read_sweep(tmp_path / "sweep.toml"), tmp_path)
    for number in range(6):
        trial = study.next_trial()
        pruned = []
        for epoch in (1, 2, 3, 4):
            trial.report(0.1 if number == 5 else 0.9, epoch)
            pruned.append(trial.should_prune())
        study.finish(trial.number, 0.9, TrialState.COMPLETE)
    assert pruned == [False, False, True, True]
    study.release()


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


def test_warnings_of_the_runs_are_shown_once(sweep):
    for number in (0, 1):
        output = Path(f"sweeps/sweep/trial-000{number}/output.txt")
        output.parent.mkdir(parents=True)
        output.write_text("  warning: what one should know\nno warning: this line\n")
    done = sweep(GRID, "--html", "page.html")
    assert (done.code, done.out.count("warning: ")) == (0, 1)
    for text in (done.out, Path("page.html").read_text()):
        assert "trial-0000: warning: what one should know" in text


def test_a_full_disk_ends_a_sweep_in_one_line(sweep, monkeypatch):
    def fail(*values):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("optuna.trial.Trial.report", fail)
    done = sweep(GRID)
    assert done.code == 1
    assert done.err == (
        "error: the sweep in sweeps/sweep failed (No space left on device); repeat the command to "
        "continue\n"
    )


def test_a_sweep_says_what_it_waits_for(sweep, monkeypatch):
    """A run that outlived its sweep still holds its --snapshot_dir."""
    Path("sweep.toml").write_text(GRID)
    former = Study(read_sweep(Path("sweep.toml")), Path("sweeps/sweep"))
    former.enqueue()
    former.next_trial()
    former.release()
    looks, lock = iter(range(8)), sweep_study.exclusive

    def busy(folder: Path, flag: str):
        if folder.parent.name == "trial-0000" and next(looks, None) is not None:
            raise InUseError("busy", "process 7")
        return lock(folder, flag)

    monkeypatch.setattr(sweep_study, "exclusive", busy)
    done = sweep(GRID)
    waiting = "waiting for trial 0: its --snapshot_dir is in use by process 7\n"
    assert (done.code, done.out.count(waiting)) == (0, 1)
    assert done.out.count(": validation accuracy") == 6


def test_equal_settings_have_no_importance():
    study = optuna.create_study()
    for value in (0.5, 0.6):
        study.add_trial(
            optuna.create_trial(
                params={"lr": 0.1},
                distributions={"lr": optuna.distributions.FloatDistribution(0.1, 1)},
                value=value,
            )
        )
    assert importances(study) == {}
