"""Where a run writes: directories of its own, files that are whole or not there, and the log."""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cifarnet.core.errors import UserError


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
        raise UserError(
            f"{flag} {path}: cannot write there ({problem.strerror}); choose another directory"
        ) from None
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
                fcntl.lockf(
                    file, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # tells `remove_leftovers` that the writer lives
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
    path = (
        directory / f".{flag.removeprefix('--')}.lock"
    )  # one a purpose: a directory may serve several
    while True:
        try:
            file = path.open("a+")
        except OSError as problem:
            raise UserError(
                f"{flag} {directory}: cannot lock it ({problem.strerror}); choose another"
            ) from None
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
