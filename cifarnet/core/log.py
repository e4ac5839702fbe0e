"""The log file of a run, and the terminal."""

import contextlib
import sys
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from cifarnet.core.errors import UserError


class RunLog:
    """Writes lines to the terminal and to the log file of one run.

    `open()` creates the file and writes the lines so far, so a request that is refused before
    leaves no file. Each line reaches the file at once: `tail -f` can follow it. The lines do not
    break a progress bar. With `quiet` (ranks other than the first) nothing is written.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.path: Path | None = None
        self._file: TextIO | None = None
        self._early: list[str] = []
        self._failed = False

    def open(self, directory: Path) -> None:
        """Creates the log file in `directory`, named after the time. Raises `OSError`."""
        self.path, self._file = _new_log_file(directory)
        for text in self._early:
            self._write(text)

    def line(self, text: str) -> None:
        """Writes `text`, one or several lines, to the log and the terminal."""
        if self.quiet:
            return
        self._print(text, sys.stdout)
        if "\n" not in text:
            text = f"{time.strftime('%H:%M:%S')} {text}"
        if self._file is None:
            self._early.append(text)
        else:
            self._write(text)

    def _print(self, text: str, stream: TextIO) -> None:
        # A closed terminal, a closed pipe or a full disk does not end the run.
        with contextlib.suppress(OSError):
            tqdm.write(text, stream)

    def _write(self, text: str) -> None:
        with self._warning_once():
            print(text, file=self._file, flush=True)

    @contextlib.contextmanager
    def _warning_once(self) -> Iterator[None]:
        """Warns once, and goes on, if the log cannot be written (a full disk)."""
        try:
            yield
        except OSError as problem:
            if not self._failed:
                self._print(
                    f"warning: the log cannot be written ({problem.strerror}); the run goes on",
                    sys.stderr,
                )
            self._failed = True

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type | None, problem: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if isinstance(problem, UserError):  # `run_command` prints it on the terminal
            self._write(f"error: {problem}")
        elif isinstance(problem, Exception):
            self._write("".join(traceback.format_exception(problem)).rstrip())
        with self._warning_once():
            self._file.close()


def _new_log_file(directory: Path) -> tuple[Path, TextIO]:
    while True:
        path = directory / f"training_complete_{time.strftime('%Y%m%d-%H%M%S')}.log"
        try:
            return path, path.open("x", encoding="utf-8", errors="backslashreplace", buffering=1)
        except FileExistsError:  # another run started in the same second
            time.sleep(0.1)
