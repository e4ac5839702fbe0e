"""What a run shows on a terminal."""

import contextlib
import io

from support.commands import SHORT
from support.outputs import log_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_evaluation_shows_a_bar_on_a_terminal(command, trained):
    terminal = Terminal()
    flags = ("--snapshot", trained.snapshot, "--batch_size", "3", "--no-plot_evaluation")
    with contextlib.redirect_stderr(terminal):
        assert command("evaluate", *flags).code == 0
    assert "evaluating" in terminal.getvalue()
    assert "evaluating" not in command("evaluate", *flags).err


def test_a_run_on_a_terminal_has_a_short_head_and_a_bar(command):
    terminal, errors = Terminal(), Terminal()
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(errors):
        assert command("main", *SHORT).code == 0
    head = terminal.getvalue().partition("epoch 1/1 | ")[0]
    assert len(head.splitlines()) <= 12, head
    for detail in ("defaults: ", "versions: ", "Conv2d-"):
        assert detail in log_text()
        assert detail not in terminal.getvalue()
    shown = errors.getvalue().rstrip("\r ").rpartition("\r")[2]
    assert all(word in shown for word in ("100%", "img/s", "loss=", "acc=", "run left=0:00:00"))
    assert len(shown) <= 80  # columns
