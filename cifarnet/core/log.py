"""The log of a run, and the terminal."""

import contextlib
import csv
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from cifarnet.core.errors import UserError


class RunLog:
    """The log file of one run, its CSV history beside it, and the terminal.

    Each line reaches the file at once, so that `tail -f` follows it; the terminal gets the same lines,
    without disturbing a progress bar. The file is made by `open()`, with the lines so far: a request that is
    refused before leaves none. With `quiet`, on other ranks than the first, nothing is written.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.path: Path | None = None
        self._file: TextIO | None = None
        self._csv: TextIO | None = None
        self._rows: csv.DictWriter | None = None
        self._early: list[str] = []
        self._failed = False

    def open(self, directory: Path) -> None:
        """Starts the file, named after the time, in `directory`."""
        self.path, self._file = _new_log_file(directory)
        for text in self._early:
            self._write_line(text)

    def line(self, text: str) -> None:
        """Writes `text`, one line or several, to the log and the terminal."""
        if self.quiet:
            return
        self._tell(text, sys.stdout)
        if "\n" not in text:
            text = f"{time.strftime('%H:%M:%S')} {text}"
        if self._file is None:
            self._early.append(text)
        else:
            self._write_line(text)

    def _tell(self, text: str, stream: TextIO) -> None:
        """Who reads along may stop, a terminal may be closed, the disk under its output may be full: the run goes on."""
        with contextlib.suppress(OSError):
            tqdm.write(text, stream)

    def _write_line(self, text: str) -> None:
        self._write(lambda: print(text, file=self._file, flush=True))

    def row(self, row: dict[str, Any]) -> None:
        """Adds a row to the CSV; the first one brings its keys as the header, None becomes a blank."""

        def write() -> None:
            if self._csv is None:
                self._csv = self.path.with_suffix(".csv").open("w", newline="", encoding="utf-8")
                self._rows = csv.DictWriter(self._csv, list(row))
                self._rows.writeheader()
            self._rows.writerow(row)
            self._csv.flush()

        self._write(write)

    def _write(self, write: Callable[[], None]) -> None:
        """A log that cannot be written (a full disk) is told once and does not end the run."""
        try:
            write()
        except OSError as problem:
            if not self._failed:
                self._tell(
                    f"warning: the log cannot be written ({problem.strerror}); the run goes on",
                    sys.stderr,
                )
            self._failed = True

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type | None, problem: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if isinstance(problem, Exception) and self._file:  # the terminal hears of it elsewhere
            said = (
                f"error: {problem}"
                if isinstance(problem, UserError)
                else "".join(traceback.format_exception(problem))
            )
            self._write_line(said)
        for file in (self._file, self._csv):
            if file:
                self._write(file.close)


def _new_log_file(directory: Path) -> tuple[Path, TextIO]:
    while True:
        path = directory / f"training_complete_{time.strftime('%Y%m%d-%H%M%S')}.log"
        try:
            return path, path.open("x", encoding="utf-8", errors="backslashreplace", buffering=1)
        except FileExistsError:  # another run started within this second
            time.sleep(0.1)
