"""How a command runs: streams, signals, errors, exit code."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from cifarnet.core.errors import UserError, machine_errors
from cifarnet.core.signals import Signals


def print_error(problem: UserError) -> int:
    """Prints `problem` as one line on stderr and returns its exit code."""
    open_streams()
    # One write: with PYTHONUNBUFFERED, the lines of two ranks would otherwise mix.
    print(f"error: {problem}\n", end="", file=sys.stderr)
    return problem.exit_code


def open_streams() -> None:
    """Connects closed standard streams to os.devnull: Python sets them to None. They take their
    usual numbers. Otherwise a file that is opened later could receive what libraries print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: PTH123, SIM115


def discard_output(stream: TextIO) -> None:
    """Sends what follows, and what is still buffered, to os.devnull. Python would flush a closed
    pipe again at exit, and print a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run_command(
    command: Callable[[], None],
    report: Callable[[UserError], object] = print_error,
    patient: bool = False,
) -> int:
    """Runs `command` and returns its exit code.

    0: done; 1: the run failed; 2: the request was wrong; 130 or 143: Ctrl-C or SIGTERM. `report`
    receives a `UserError` or `RunError`. `patient`: see `Signals`. Any other error is a bug and
    is raised.
    """
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name can hold characters that the terminal's encoding lacks. Whoever reads a pipe
            # sees each line at once.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        with Signals(patient), machine_errors():
            command()
        sys.stdout.flush()
    except UserError as problem:
        report(problem)
        return problem.exit_code
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        discard_output(sys.stdout)  # closed (`| head`), or on a full disk
        if problem.errno == errno.ENOSPC:
            print(f"error: the output could not be written ({problem.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt as problem:
        return getattr(problem, "exit_code", 130)
    return 0
