"""How a command runs: streams, signals, errors, exit code."""

import errno
import io
import os
import select
import sys
from collections.abc import Callable

from cifarnet.core.errors import UserError, machine_errors, reason
from cifarnet.core.signals import Signals
from cifarnet.core.threads import fit_libraries


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


class StandardStream(io.FileIO):
    """A standard stream whose reader may end early, as in `| head`, or whose terminal may close: a
    command that also writes files goes on, and its further output is discarded. It waits for a full
    pipe, even if another program has made that pipe non-blocking."""

    def write(self, content: bytes) -> int:
        try:
            while (written := super().write(content)) is None:
                select.select([], [self], [])
            return written
        except OSError as problem:
            if problem.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(content)


def prepare_streams() -> None:
    """Prepares stdout and stderr: each line is written at once, also through a pipe. Characters
    that the encoding lacks, as in the name of a file, become escapes."""
    open_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            raw = StandardStream(stream.fileno(), "wb", closefd=False)
            stream = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding)
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):  # else a test's
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def run_command(
    command: Callable[[], None],
    report: Callable[[UserError], object] = print_error,
    patient: bool = False,
) -> int:
    """Runs `command` and returns its exit code.

    0: done; 1: the run failed; 2: the request was wrong; 130, 143 or 129: Ctrl-C, SIGTERM or a
    closed terminal (SIGHUP). `report` receives a `UserError` or `RunError`. `patient`: see
    `Signals`. Any other error is a bug and is raised.
    """
    prepare_streams()
    fit_libraries()
    try:
        with Signals(patient), machine_errors():
            command()
        sys.stdout.flush()
    except UserError as problem:
        report(problem)
        return problem.exit_code
    except OSError as problem:
        if problem.filename is not None or problem.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at exit
        print(f"error: the output could not be written ({reason(problem)})", file=sys.stderr)
        return 1
    except KeyboardInterrupt as problem:
        return getattr(problem, "exit_code", 130)
    return 0
