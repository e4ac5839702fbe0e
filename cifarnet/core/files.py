"""Files that are written completely or not at all, and locks on folders."""

import atexit
import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from cifarnet.core.errors import RunError, UserError, os_errors, reason


def writable_directory(path: str | Path, flag: str) -> Path:
    """Creates the directory `path` if needed and checks that `write_atomically` works there.

    Removes the unfinished files of killed writers. Raises a `UserError` that names `flag`, or a
    `RunError` if the disk is full.
    """
    directory = Path(path)
    trial = directory / f".trial.{os.getpid():08}.part"  # `remove_leftovers` finds it after a kill
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # the second write replaces the first, as later snapshots do
            write_atomically(trial, lambda file: file.write(bytes(4096)))
        trial.unlink(missing_ok=True)  # another process may have removed it
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        in_the_way = "a file or a broken link has this name"
        why = in_the_way if isinstance(problem, FileExistsError) else reason(problem)
        raise (RunError if full else UserError)(
            f"{flag} {path}: cannot write there ({why}); choose another folder"
        ) from None
    remove_leftovers(directory)
    return directory


def ensure_temporary_folder(directory: Path) -> None:
    """Where the system has no usable temporary folder, libraries get one inside `directory`. It is
    removed at the end of the process."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        with contextlib.suppress(OSError):  # an error of a library says then what it needs
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.tempdir = tempfile.mkdtemp(prefix=".temporary.", dir=directory.resolve())
            atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


def unused_path(path: Path) -> Path:
    """`path`; if it exists, `path` with _2, _3, ... after its stem."""
    others = (path.with_stem(f"{path.stem}_{count}") for count in itertools.count(2))
    return next(each for each in itertools.chain([path], others) if not each.exists())


def move_aside(paths: Sequence[Path], directory: Path) -> Path | None:
    """Moves `paths` into a new subfolder before_<date> of `directory`, and returns that; None:
    there are no paths. Raises `OSError`."""
    if not paths:
        return None
    folder = unused_path(directory / f"before_{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir()
    for path in paths:
        path.replace(folder / path.name)
    return folder


def check_replaceable(path: str | None, flag: str, kind: str, begins: str) -> None:
    """Checks that a command may write its file to `path`; None: it was not asked for.

    A file that exists is replaced only if it begins with `begins`, as files of this `kind` do.
    Raises a `UserError` that names `flag` for another file, and for a folder that does not exist or
    is not writable.
    """
    if path is None:
        return
    target = Path(path)
    try:
        if target.is_fifo() or target.is_char_device():  # to read a pipe or a terminal would wait
            raise UserError(f"{flag} {path} is not a file; name a file")
        with target.open("rb") as file:
            start = file.read(len(begins.encode()))
    except FileNotFoundError:
        start = begins.encode()
    except OSError as problem:
        raise UserError(f"{flag} {path}: {reason(problem)}; name another file") from None
    if start != begins.encode():
        raise UserError(f"{flag} {path} exists and is not {kind}; name another file")
    folder = target.parent
    if not os.access(folder, os.W_OK):
        raise UserError(f"{flag} {path}: the folder {folder} cannot be written to; name another")


def write_named(path: str, flag: str, text: str) -> None:
    """Writes `text` to `path` as `write_text` does. Raises a `RunError` that names `flag`."""
    with os_errors(f"{flag} {path}: cannot write it", "name another file", RunError):
        write_text(Path(path), text)


def existing_directory(path: str | Path, flag: str) -> Path:
    """`path` as a directory to read from. Raises a `UserError` that names `flag`."""
    directory = Path(path)
    with os_errors(f"{flag} {path} cannot be read", "name a folder"):
        what = "is a file"
        try:
            if stat.S_ISDIR(directory.stat().st_mode):
                return directory
        except (FileNotFoundError, NotADirectoryError):
            what = "does not exist"
    raise UserError(f"{flag} {path} {what}; name a folder")


def exists(path: Path, follow: bool = False) -> bool:
    """Whether `path` exists. A broken link does, unless `follow`. Raises `UserError` where that
    cannot be seen: what cannot be read is not absent."""
    with os_errors(f"{path} cannot be read", "change its permissions, or name another one"):
        try:
            path.stat(follow_symlinks=follow)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def files_in(folder: Path, suffix: str) -> list[Path]:
    """The paths in `folder` whose names end in `suffix`, sorted; none if there is no such folder.
    Raises `OSError` where that cannot be seen: `glob` would find none."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_file(path: Path) -> bytes:
    """The content of the file `path`. Raises `UserError` where it cannot be read."""
    with os_errors(f"{path} cannot be read", "use another file"):
        return path.read_bytes()


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes the file `path` completely or not at all. Raises `OSError`.

    `write` fills a file beside it, which is flushed to disk and then renamed. So `path` always
    holds either its former content or all of the new one.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            # The lock tells `remove_leftovers` that the writer is running.
            with contextlib.suppress(OSError):  # the file system may have no locks
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(OSError):  # some network disks and FUSE refuse any chmod
                part.chmod(0o666 & ~_umask())  # mkstemp lets only the owner read its files
            part.replace(path)
        _flush_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Writes `text` as `write_atomically` does. Raises `OSError`. Bytes of file names that are not
    text become escapes."""
    content = text.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(content))


def _flush_directory(directory: Path) -> None:
    """Flushes the names in `directory` to disk. Otherwise a power loss can undo a renaming.

    The file itself is flushed already, so errors are ignored: the directory may not be readable, or
    the file system may not flush directories.
    """
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(directory: Path) -> None:
    """Removes the unfinished files of `write_atomically` whose writers were killed."""
    for part in directory.glob(".*.????????.part"):
        with contextlib.suppress(OSError), part.open("ab") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


class InUseError(UserError):
    """The process `holder`, in words, works in the folder."""

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


@contextlib.contextmanager
def exclusive(directory: Path, flag: str) -> Iterator[None]:
    """Locks `directory` against other processes that use it for the same `flag`.

    Raises an `InUseError` that names `flag` if another process holds the lock, and `UserError` if
    the lock cannot be opened. It is a POSIX record lock: it ends with the process in any case, and
    child processes do not inherit it.
    """
    # One lock per flag: several flags may name the same folder.
    path = directory / f".{flag.removeprefix('--')}.lock"
    while True:
        try:
            file = path.open("a+")
        except OSError as problem:
            raise UserError(
                f"{flag} {directory}: cannot lock it ({path}: {reason(problem)}); "
                f"{_who_may_remove(path)}choose another folder"
            ) from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:  # other errors: the file system has no locks
            if problem.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read() or "a process that just started"
                file.close()
                raise InUseError(
                    f"{flag} {directory} is in use by another run ({holder}); "
                    f"wait for its end or choose another folder",
                    holder,
                ) from None
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()  # its former holder removed it between our opening and our locking
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _who_may_remove(path: Path) -> str:
    """What to do about the lock of another user, in words; empty where its owner is not known."""
    try:
        owner = path.stat().st_uid
    except OSError:
        return ""
    return f"user {owner} may remove that file if no run of theirs is running, or "


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
