"""The folder of a sweep: its journal, its lock, and a sweep that was changed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import TrialState
from support.commands import without_privileges
from support.sweeps import ALONE, FLAGS, GRID, ROOT, starts

from commands.sweep_file import read_sweep
from commands.sweep_study import Study

EACH = f"""  # table, plan and command in one process, each followed by its exit code
import sys
sys.path[:0] = [{str(ROOT)!r}]
import sweep
for flags in (["--table"], ["--dry-run"], []):
    print("exit code", sweep.main([*sys.argv[1:], *flags]))
"""


@pytest.mark.filterwarnings("ignore:The value of .grace_period. might be too small")
def test_a_lock_that_a_killed_sweep_left_is_released_in_a_moved_folder_too(sweep, monkeypatch):
    Path("sweep.toml").write_text(GRID)
    killed = "from optuna.storages.journal import JournalFileOpenLock as Lock\n"
    killed += "import os\nLock.release = lambda lock: os._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", killed + ALONE]).returncode == 9
    assert Path("sweeps/sweep/study.log.lock").exists()
    Path("sweeps/sweep").rename("moved")
    monkeypatch.setattr(JournalFileOpenLock.__init__, "__defaults__", (0.5,))  # seconds, not 30
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


def test_a_range_has_the_type_of_its_flag(tmp_path):
    """TOML's 0 and 1 are whole numbers, but a probability lies between them."""
    space = "flip_p = {low = 0, high = 1}\nbatch_size = {low = 8, high = 64}\n"
    search = "[search]\nsampler = 'random'\ntrials = 1\n[search.space]\n"
    (tmp_path / "sweep.toml").write_text(FLAGS + search + space)
    study = Study(read_sweep(tmp_path / "sweep.toml"), tmp_path)
    values = study.next_trial().params
    study.finish(0, 0.5, TrialState.COMPLETE)
    assert 0 < values["flip_p"] < 1
    assert values["batch_size"] in range(8, 65)


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
