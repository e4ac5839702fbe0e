"""The log file of a run, and the terminal."""

import contextlib
import os
import sys
import time
import traceback
import types
from pathlib import Path
from typing import BinaryIO, TextIO

from tqdm import tqdm

from cifarnet.core.errors import RunError, UserError, os_errors, printable, reason


class RunLog:
    """Writes lines to the terminal and to the log file of one run.

    `open()` creates the file and writes the lines so far. A request that is refused earlier leaves
    no file. Each line is written at once, so `tail -f` can follow it. Lines do not break a progress
    bar. With `quiet` (ranks other than 0) nothing is written. If the disk is full, the text is kept
    and written with the next line. If the file is moved away, all of it is written again. If it is
    emptied or replaced, the next lines follow.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.path: Path | None = None
        self._file: BinaryIO | None = None
        self._all = self._unwritten = b""
        self._warned = False

    def open(self, directory: Path) -> None:
        """Creates the log file in `directory`, named after the time. Raises `RunError`."""
        with os_errors(f"cannot create a log in {directory}", kind=RunError):
            self.path, self._file = _new_log_file(directory)
        self._write("")

    def line(self, text: str) -> None:
        """Writes `text` as one line to the log, with the time, and to the terminal. Characters that
        are not printable become escapes, so a file name cannot forge a line."""
        self._emit(printable(text), time.strftime("%H:%M:%S "))

    def detail(self, text: str) -> None:
        """Writes `text` as one line, but not to a terminal, where the head of a run is short."""
        self._emit(printable(text), time.strftime("%H:%M:%S "), is_detail=True)

    def block(self, text: str) -> None:
        """Writes `text`, several lines that need no escapes, but not to a terminal."""
        self._emit(text, is_detail=True)

    def check(self) -> None:
        """Raises `RunError` if a part of the log could not be written."""
        if self._file and self._unwritten:
            raise RunError(f"the log could not be written to {self.path}; free disk space")

    def _emit(self, text: str, prefix: str = "", is_detail: bool = False) -> None:
        if self.quiet:
            return
        if not (is_detail and sys.stdout.isatty()):
            self._print(text, sys.stdout)
        self._write(f"{prefix}{text}\n")

    def _print(self, text: str, stream: TextIO) -> None:
        with contextlib.suppress(OSError):  # a closed terminal or a full disk does not end the run
            # If a signal raises before tqdm has taken its lock, tqdm fails when it frees it.
            tqdm.write(text, stream, nolock=True)

    def _write(self, text: str) -> None:
        """Writes the unwritten text, then `text`. Warns once if the disk is full."""
        content = text.encode(errors="backslashreplace")
        self._all += content
        self._unwritten += content
        try:
            if self._file and not self._is_in_place():
                if not self.path.exists():
                    self._unwritten = self._all
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file.close()
                self._file = self.path.open("ab", buffering=0)
            while self._file and self._unwritten:
                written = self._file.write(self._unwritten)
                self._unwritten = self._unwritten[written:]
        except OSError as problem:
            if not self._warned:
                self._print(
                    f"warning: the log cannot be written ({reason(problem)}); the run continues",
                    sys.stderr,
                )
            self._warned = True

    def _is_in_place(self) -> bool:
        """Whether the open file is still the one at `path`: an editor replaces it."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type | None, problem: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if isinstance(problem, UserError):  # `run_command` prints it on the terminal
            self._write(f"error: {problem}\n")
        elif isinstance(problem, Exception):
            self._write("".join(traceback.format_exception(problem)))
        with contextlib.suppress(OSError):
            self._file.close()


def print_line(text: str) -> None:
    """Prints `text` as one line. Characters that are not printable become escapes."""
    print(printable(text))


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _new_log_file(directory: Path) -> tuple[Path, BinaryIO]:
    while True:
        path = directory / f"training_complete_{time.strftime('%Y%m%d-%H%M%S')}.log"
        try:
            path.open("xb").close()
            return path, path.open("ab", buffering=0)  # at its end, even if someone empties it
        except FileExistsError:  # another run started in the same second
            time.sleep(0.1)
