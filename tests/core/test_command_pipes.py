"""Commands whose output goes through a pipe: in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = """
import sys, time
from cifarnet.core.command import run_command
from cifarnet.core.log import RunLog
def work():
    log = RunLog()
    log.line("first")
    sys.stdin.readline()
    for _ in range(3):
        log.line("later")
    open(sys.argv[1], "w").close()
sys.exit(run_command(work))
"""


def start(target: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )


def test_a_line_passes_a_pipe_at_once(tmp_path):
    with start(tmp_path / "done") as run:
        assert run.stdout.readline() == "first\n"  # while the command still waits
        out, err = run.communicate("\n")
    assert (run.returncode, out, err) == (0, "later\n" * 3, "")


def test_a_run_whose_reader_ends_goes_on_to_its_end(tmp_path):
    with start(tmp_path / "done") as run:
        run.stdout.readline()
        run.stdout.close()
        _, err = run.communicate("\n")
    assert (run.returncode, err) == (0, "")
    assert (tmp_path / "done").exists()
