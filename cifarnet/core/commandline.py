"""The parser of a command line, how a command runs, and how it reports errors."""

import argparse
import contextlib
import errno
import importlib.util
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator

from cifarnet.core.errors import RunError, UserError, did_you_mean
from cifarnet.core.signals import Signals


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError` on a wrong request instead of exiting."""

    def error(self, message: str) -> typing.NoReturn:
        if "ignored explicit argument" in message:  # as in --amp=true
            flag = message.split()[1].partition("/")[0]
            raise UserError(f"{flag} takes no value; leave the value out")
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = next(
            (w for w in message.split() if w.startswith("--") and w.rstrip(":") not in flags), ""
        )
        raise UserError(f"{message}; {did_you_mean(unknown, flags) or 'see --help'}")


def path_argument(text: str) -> str:
    """The type of an argument that is a path: `~` means the home directory."""
    return os.path.expanduser(text)  # noqa: PTH111, Path would tidy up `./name`


def check_package(name: str, flag: str) -> None:
    """Raises `UserError` where the optional package `name`, which `flag` needs, is not there."""
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"{flag} needs the package {name}, which is not installed; "
            f"pip install -r requirements-extra.txt, or leave {flag} out"
        )


def print_error(problem: UserError) -> int:
    """Prints `problem` as one line on stderr and returns its exit code."""
    open_streams()
    # One write: with PYTHONUNBUFFERED, two ranks' lines would else run into one another.
    print(f"error: {problem}\n", end="", file=sys.stderr)
    return problem.exit_code


@contextlib.contextmanager
def machine_errors() -> Iterator[None]:
    """Turns errors of the machine into `RunError`: out of memory, a worker that died.

    torch raises a plain `RuntimeError` for a dead worker, and on the CPU and on MPS for memory, so
    its message decides.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        text = str(problem)
        if isinstance(problem, MemoryError) or any(
            sign in text for sign in ("out of memory", "can't allocate memory")
        ):
            raise RunError(
                "out of memory; lower --batch_size, or raise --accumulate in training"
            ) from None
        if re.match(r"DataLoader worker \(pid", text):
            raise lost_workers("one of them was killed, or ran out of memory") from None
        raise


def lost_workers(why: str) -> RunError:
    """The error for processes that augment images and cannot start or have died."""
    return RunError(
        f"the processes that augment images failed: {why}; "
        f"use --num_workers 0 or --augment_engine batched"
    )


def open_streams() -> None:
    """Lets closed standard streams lead to os.devnull: Python has None for them.

    They take their usual numbers, or a file that is opened later would receive what libraries
    print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: PTH123, SIM115


def run_command(
    command: Callable[[], None],
    tell: Callable[[UserError], object] = print_error,
    patient: bool = False,
) -> int:
    """Runs `command` and returns its exit code.

    0: done; 1: the run failed; 2: the request was wrong; 130 or 143: Ctrl-C or SIGTERM. `tell`
    reports a `UserError` or `RunError`. `patient`: see `Signals`. Any other error is a bug and
    passes through.
    """
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name can hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        with Signals(patient), machine_errors():
            command()
        sys.stdout.flush()
    except UserError as problem:
        tell(problem)
        return problem.exit_code
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # stdout is closed (`| head`) or its disk is full. Python would flush it again at exit
        # and print a traceback, so let that write go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if problem.errno == errno.ENOSPC:
            print(f"error: the output could not be written ({problem.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt as problem:
        return getattr(problem, "exit_code", 130)
    return 0
