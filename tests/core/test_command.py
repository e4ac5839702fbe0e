import io
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from cifarnet.core.command import print_error, run_command
from cifarnet.core.errors import RunError, UserError

ROOT = Path(__file__).parents[2]


def test_a_terminal_of_few_characters_gets_escapes(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run_command(lambda: print("ünï")) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"\\xfcn\\xef\n"


def test_exit_codes(capsys):
    def fail(problem):
        raise problem

    assert run_command(lambda: None) == 0
    assert run_command(lambda: fail(UserError("a\nb"))) == 2
    assert run_command(lambda: fail(RunError("c"))) == 1
    assert run_command(lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "error: a\\nb\nerror: c\n")
    with pytest.raises(ZeroDivisionError):  # a bug stays a traceback
        run_command(lambda: 1 / 0)


def test_an_error_is_one_write_so_that_lines_of_ranks_stay_apart(monkeypatch):
    written = []
    stream = types.SimpleNamespace(write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stderr", stream)
    print_error(UserError("a"))
    assert list(filter(None, written)) == ["error: a\n"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere_and_files_do_not_take_their_numbers(tmp_path, closed):
    code = (
        "import os, pathlib, sys\n"
        "from cifarnet.core.command import run_command\n"
        "from cifarnet.core.errors import RunError\n"
        "def work():\n"
        "    with open('out', 'w') as file:\n"
        "        assert file.fileno() > 2\n"
        "        print('text'); print('text', file=sys.stderr); os.write(1, b'x')\n"
        "        assert sys.stdin.read() == ''\n"
        "        file.write('content')\n"
        "    raise RunError('too bad')\n"
        "sys.exit(run_command(work))\n"
    )
    done = subprocess.run(
        f'"$PYTHON" -c "$CODE" {closed}', shell=True, cwd=tmp_path, stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHON": sys.executable, "CODE": code, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert (tmp_path / "out").read_text() == "content"
    assert done.stderr == ("" if "2>" in closed else "text\nerror: too bad\n")


# --- output through a pipe, in processes of their own ---

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


def test_a_run_whose_terminal_is_closed_goes_on_to_its_end(tmp_path):
    """In a session of its own no SIGHUP reaches it, as after `disown`."""
    terminal, slave = os.openpty()
    words = [sys.executable, "-c", COMMAND, str(tmp_path / "done")]
    streams = {"stdin": subprocess.PIPE, "stdout": slave, "stderr": slave}
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True, **streams) as run:
        os.close(slave)
        assert os.read(terminal, 100) == b"first\r\n"
        os.close(terminal)
        run.communicate(b"\n")
    assert run.returncode == 0
    assert (tmp_path / "done").exists()


def test_a_line_waits_for_a_full_pipe_that_another_program_made_non_blocking():
    """As node and ssh do with a terminal or pipe that they share. Python would raise."""
    code = """
import os, sys
from cifarnet.core.command import run_command
os.set_blocking(1, False)
sys.exit(run_command(lambda: print("x" * 1_000_000)))
"""
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as run:
        time.sleep(1)  # the pipe is full
        out, err = run.communicate()
    assert (run.returncode, len(out), err) == (0, 1_000_001, "")
