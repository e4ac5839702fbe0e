import errno
import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifarnet.core import log as log_module
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.log import RunLog


@pytest.fixture
def full_disk(monkeypatch):
    """Makes the file of a log one that takes nothing, as on a full disk."""

    full = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115

    def fill(log: RunLog) -> None:
        log._file.close()
        monkeypatch.setattr(log, "_file", full)
        monkeypatch.setattr(log, "_is_in_place", lambda: True)

    yield fill
    full.close()


def test_the_log_is_readable_while_it_is_written(tmp_path, capsys):
    with RunLog() as log:
        log.open(tmp_path)
        log.line("one line")
        assert log.path.read_text().endswith(" one line\n")
        log.block("a table\nof lines")
        assert log.path.read_text().endswith("one line\na table\nof lines\n")
        with RunLog() as other:
            other.open(tmp_path)  # in the same second
            assert other.path != log.path
    assert capsys.readouterr().out == "one line\na table\nof lines\n"


def test_the_log_says_how_a_run_ended(tmp_path):
    for problem, ending in (
        (UserError("too bad"), "error: too bad\n"),
        (KeyboardInterrupt(), ""),
        (ValueError("a bug"), "Traceback .*ValueError: a bug\n"),
    ):
        with pytest.raises(type(problem)), RunLog() as log:
            log.open(tmp_path)
            raise problem
        assert re.fullmatch(ending, log.path.read_text(), re.DOTALL)


def test_a_request_refused_early_leaves_no_log(tmp_path):
    with pytest.raises(UserError), RunLog() as log:
        log.line("an early line")
        raise UserError("too bad")
    assert not list(tmp_path.iterdir())
    with RunLog() as log:
        log.line("an early line")
        log.open(tmp_path)
    assert log.path.read_text().endswith("an early line\n")


def test_a_quiet_log_says_nothing(capsys):
    with RunLog(quiet=True) as log:
        log.line("from another rank")
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_under_the_log_does_not_end_the_run(tmp_path, capsys, full_disk):
    with RunLog() as log:
        log.open(tmp_path)
        full_disk(log)
        log.line("first")
        log.line("second")
        with pytest.raises(RunError, match=r"the log could not be written to .*\.log"):
            log.check()
    printed = capsys.readouterr()
    assert printed.out == "first\nsecond\n"
    assert printed.err.count("the log cannot be written") == 1


def test_what_a_full_disk_refused_is_written_once_there_is_room(tmp_path, monkeypatch, full_disk):
    with RunLog() as log:
        log.open(tmp_path)
        full_disk(log)
        log.line("first")
        monkeypatch.setattr(log, "_file", log.path.open("ab", buffering=0))
        log.line("second")
        log.check()
    assert [line.split(" ", 1)[1] for line in log.path.read_text().splitlines()] == [
        "first", "second",
    ]  # fmt: skip


def test_a_log_that_was_emptied_edited_or_moved_goes_on(tmp_path):
    def replaced() -> None:  # as an editor saves
        (tmp_path / "new").write_text("edited\n")
        (tmp_path / "new").replace(log.path)

    def emptied() -> None:
        log.path.write_text("")

    def moved() -> None:
        log.path.rename(tmp_path / "old")

    for change, lines in ((emptied, "two"), (replaced, "edited two"), (moved, "one two")):
        with RunLog() as log:
            log.open(tmp_path)
            log.line("one")
            change()
            log.line("two")
        written = [line.split()[-1] for line in log.path.read_text().splitlines()]
        assert written == lines.split()


@given(st.text())
def test_a_name_forges_no_line(text):
    with tempfile.TemporaryDirectory() as directory, RunLog() as log:
        log.open(Path(directory))
        log.line(f"the teacher {text}")
        assert re.fullmatch(r"\d\d:\d\d:\d\d the teacher .*\n", log.path.read_text())
        assert log.path.read_text()[:-1].isprintable()


def test_no_log_can_be_made(tmp_path):
    with pytest.raises(RunError, match="cannot create a log"), RunLog() as log:
        log.open(tmp_path / "missing")


@pytest.mark.parametrize("why", [errno.EPIPE, errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_terminal_that_takes_no_more_does_not_end_the_run(tmp_path, monkeypatch, full_disk, why):
    """A closed pipe, a closed terminal, a full disk under its output."""

    def fail(text, stream, nolock):
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(log_module.tqdm, "write", fail)
    with RunLog() as log:
        log.open(tmp_path)
        log.line("goes on")
        assert log.path.read_text().endswith("goes on\n")
        full_disk(log)
        log.line("neither takes it")
