import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifarnet.core import files
from cifarnet.core.errors import UserError
from cifarnet.core.files import exclusive, writable_directory, write_atomically
from cifarnet.core.log import RunLog


def test_a_failed_write_leaves_the_former_content_and_no_litter(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--log_dir"):
        writable_directory(tmp_path / "file", "--log_dir")
    with pytest.raises(UserError, match="--log_dir"):
        writable_directory(tmp_path / "file" / "below", "--log_dir")


def test_only_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".last.pth.abcd_123.part").write_bytes(b"half")
    (tmp_path / "archive.part").write_bytes(b"a download")
    other = (
        "import pathlib, sys; from cifarnet.core import files\n"
        "def write(file): print('writing', flush=True); sys.stdin.read()\n"
        "files.write_atomically(pathlib.Path('file'), write)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", other],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writable_directory(tmp_path, "--x")
        left = sorted(path.name for path in tmp_path.iterdir())
        writer.stdin.close()
        assert writer.wait() == 0
    assert left[1:] == ["archive.part"]
    assert left[0].startswith(".file.")  # of a writer that lives
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.part", "file"]


def test_a_lock_leaves_nothing_behind(tmp_path):
    for _ in range(2):
        with exclusive(tmp_path, "--x"):
            assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]
        assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path, "--x"), exclusive(tmp_path, "--y"):  # a lock for each purpose
        assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".x.lock").mkdir()
    with pytest.raises(UserError, match=r"--x .* cannot lock it"), exclusive(tmp_path, "--x"):
        pass


def test_the_log_is_readable_while_it_is_written(tmp_path, capsys):
    with RunLog() as log:
        log.open(tmp_path)
        log.line("one line")
        log.row({"epoch": 1, "loss": 0.5, "val": None})
        log.row({"epoch": 2, "loss": 0.25, "val": None})
        assert log.path.read_text().endswith("one line\n")
        with log.path.with_suffix(".csv").open(newline="") as file:
            assert list(csv.reader(file)) == [
                ["epoch", "loss", "val"],
                ["1", "0.5", ""],
                ["2", "0.25", ""],
            ]
        with RunLog() as other:
            other.open(tmp_path)  # within the same second
            assert other.path != log.path
    assert capsys.readouterr().out == "one line\n"


def test_the_log_tells_how_a_run_ended(tmp_path):
    for problem, told in ((UserError("too bad"), "error: too bad\n"), (KeyboardInterrupt(), "")):
        with pytest.raises(type(problem)), RunLog() as log:
            log.open(tmp_path)
            raise problem
        assert log.path.read_text() == told


def test_a_request_refused_early_leaves_no_log(tmp_path):
    with pytest.raises(UserError), RunLog() as log:
        log.line("said early")
        raise UserError("too bad")
    assert not list(tmp_path.iterdir())
    with RunLog() as log:
        log.line("said early")
        log.open(tmp_path)
    assert log.path.read_text().endswith("said early\n")


def test_a_full_disk_under_the_log_does_not_end_the_run(tmp_path, capsys):
    with RunLog() as log:
        log.open(tmp_path)
        log._file.close()
        log._file = open("/dev/full", "w", buffering=1)  # noqa: PTH123, SIM115
        log.line("first")
        log.line("second")
    printed = capsys.readouterr()
    assert printed.out == "first\nsecond\n"
    assert printed.err.count("the log cannot be written") == 1


@pytest.mark.parametrize("why", [errno.EPIPE, errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_terminal_that_takes_no_more_does_not_end_the_run(tmp_path, monkeypatch, why):
    """Who reads along left, the terminal was closed, the disk under its output is full."""

    def leave(text, stream):
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(files.tqdm, "write", leave)
    with RunLog() as log:
        log.open(tmp_path)
        log.line("goes on")
        text = log.path.read_text()
        log._file.close()
        log._file = open("/dev/full", "w", buffering=1)  # noqa: PTH123, SIM115
        log.line("neither takes it")
    assert text.endswith("goes on\n")
