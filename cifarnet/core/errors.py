"""Errors that a command reports in one line, and their exit codes."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

NO_PROCESS = "no process or thread can be started; raise their limit (ulimit -u)"


class UserError(Exception):
    """The request was wrong (flags, files, data). One line says what to fix. Exit code 2."""

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class RunError(UserError):
    """The request was valid, but the run failed. One line says why. Exit code 1."""

    exit_code = 1


def printable(text: str, kept: str = "") -> str:
    """Returns `text` with every invisible character (line break, terminal command) as an escape,
    except those in `kept`. File names can hold any character. Printed unchanged, they could break a
    line or a terminal."""
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Returns "did you mean X?" with the closest word in `choices`, or "" if none is close."""
    closest = difflib.get_close_matches(word, choices, 1)
    return f"did you mean {closest[0]}?" if closest else ""


def reason(problem: Exception) -> str:
    """Why something failed, in words: the system's words if it refused."""
    if isinstance(problem, OSError):
        return problem.strerror or str(problem)
    if isinstance(problem, UserError):
        return str(problem)
    return f"{type(problem).__name__}: {problem}"


@contextlib.contextmanager
def os_errors(failure: str, advice: str = "", kind: type[UserError] = UserError) -> Iterator[None]:
    """Turns an `OSError` into a `UserError`: "`failure` (the reason); `advice`"."""
    try:
        yield
    except OSError as problem:
        raise kind(f"{failure} ({reason(problem)}){advice and f'; {advice}'}") from None


def lost_workers(why: str) -> RunError:
    """The error for processes that augment images and cannot start or have died."""
    return RunError(
        f"the processes that augment images failed: {why}; "
        f"use --num_workers 0 or --augment_engine batched"
    )


@contextlib.contextmanager
def machine_errors() -> Iterator[None]:
    """Turns errors caused by the machine into `RunError`: out of memory or address space, dead
    workers, no further thread, no temporary folder.

    torch raises a plain `RuntimeError` for a dead worker, and on the CPU and on MPS for memory, so
    its message decides.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        text = str(problem)
        no_memory = re.search("out of memory|can't allocate memory|STATUS_ALLOC_FAILED", text)
        if no_memory or isinstance(problem, MemoryError):
            raise RunError(
                "out of memory; lower --batch_size, or raise --accumulate in training"
            ) from None
        if re.match(r"DataLoader worker \(pid", text):
            raise lost_workers("one of them was killed, or ran out of memory") from None
        if re.search("can't start new thread|pthread_create failed", text):
            raise RunError(NO_PROCESS) from None
        raise
    except ImportError as problem:
        if "failed to map segment" in str(problem):  # as the dynamic linker says
            raise RunError(
                "the libraries do not fit into the address space; raise its limit (ulimit -v)"
            ) from None
        raise
    except OSError as problem:
        if isinstance(problem, BlockingIOError):  # of fork
            raise RunError(NO_PROCESS) from None
        if "temporary directory" in str(problem):  # as tempfile and matplotlib say
            raise RunError(
                "no temporary folder is writable; set TMPDIR to a writable one"
            ) from None
        raise
