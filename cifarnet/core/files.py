"""Where a run writes: directories of its own, files that are whole or not there, and the log."""

import contextlib
import csv
import errno
import fcntl
import os
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tqdm import tqdm

from cifarnet.core.settings import UserError


def writable_directory(path: str | Path, flag: str) -> Path:
    """`path` as a directory that exists, takes new files, and is rid of what killed writers left in it.

    Raises `UserError` that names `flag`.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as problem:
        raise UserError(f"{flag} {path}: cannot write there ({problem.strerror}); choose another directory") from None
    remove_leftovers(directory)
    return directory


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Has `write` fill a file beside `path`, flushes it to disk and renames it to `path`.

    Whatever happens, `path` holds either its former content or all of the new. Raises `OSError`.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells `remove_leftovers` that the writer lives
            write(file)
            file.flush()
            os.fsync(file.fileno())
            part.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
            part.replace(path)
        _flush_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _flush_directory(directory: Path) -> None:
    """Flushes the names in `directory` to disk: without it, a power loss could undo a renaming."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # a file system that flushes no directories
            raise
    finally:
        os.close(handle)


def remove_leftovers(directory: Path) -> None:
    """Removes the unfinished files of `write_atomically` whose writers were killed."""
    for part in directory.glob(".*.????????.part"):
        with contextlib.suppress(OSError), part.open("ab") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


@contextlib.contextmanager
def exclusive(directory: Path, flag: str) -> Iterator[None]:
    """Keeps other processes out of `directory` meanwhile. Raises `UserError` that names `flag` where one is inside.

    The lock is a POSIX record lock: it ends with the process, however that ends, and workers do not inherit it.
    """
    path = directory / f".{flag.removeprefix('--')}.lock"  # one a purpose: a directory may serve several
    while True:
        try:
            file = path.open("a+")
        except OSError as problem:
            raise UserError(f"{flag} {directory}: cannot lock it ({problem.strerror}); choose another") from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read() or "just started"
                file.close()
                raise UserError(
                    f"{flag} {directory} is in use by another run ({holder}); wait for its end or choose another"
                ) from None  # any other error: the file system knows no locks
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()  # the former holder removed this file between our opening and locking it
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
                self._tell(f"warning: the log cannot be written ({problem.strerror}); the run goes on", sys.stderr)
            self._failed = True

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: types.TracebackType | None) -> None:
        if isinstance(problem, Exception) and self._file:  # the terminal hears of it elsewhere
            said = (
                f"error: {problem}" if isinstance(problem, UserError) else "".join(traceback.format_exception(problem))
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
