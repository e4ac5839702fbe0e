import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cifarnet.core.errors import UserError
from cifarnet.core.files import (
    check_replaceable,
    exclusive,
    writable_directory,
    write_atomically,
)


def test_a_failed_write_leaves_the_former_content_and_no_litter(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def refusing(monkeypatch, owner, name: str, problem: OSError, directories: bool = False) -> None:
    """Has `owner.name` raise `problem`; with `directories` only if it is asked for one."""
    original = getattr(owner, name)

    def call(*arguments, **options):
        if not directories or os.path.isdir(arguments[0]):  # noqa: PTH112, it may be a number
            raise problem
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


NICETIES = [
    ("chmod", errno.EPERM, Path, False), ("chmod", errno.ENOTSUP, Path, False),
    ("open", errno.EACCES, os, True),
    *(("fsync", code, os, True) for code in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EIO)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "code", "owner", "directories"), NICETIES)
def test_niceties_that_a_file_system_refuses_are_passed_over(
    tmp_path, monkeypatch, name, code, owner, directories
):
    refusing(monkeypatch, owner, name, OSError(code, os.strerror(code)), directories)
    write_atomically(writable_directory(tmp_path / "a", "--x") / "file", lambda f: f.write(b"new"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"]
    assert (tmp_path / "a" / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("owner", "name", "code", "exit_code"),
    [
        (os, "fsync", errno.ENOTSUP, 2), (os, "fsync", errno.ENOSPC, 1),
        (os, "fsync", errno.EDQUOT, 1), (Path, "replace", errno.EACCES, 2),
        (tempfile, "mkstemp", errno.EROFS, 2),
    ],
)  # fmt: skip
def test_what_writing_needs_is_checked_at_the_start(
    tmp_path, monkeypatch, owner, name, code, exit_code
):
    with monkeypatch.context() as patched:
        refusing(patched, owner, name, OSError(code, os.strerror(code)))
        with pytest.raises(UserError, match=rf"--x .*{os.strerror(code)}") as caught:
            writable_directory(tmp_path, "--x")
    assert caught.value.exit_code == exit_code
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_replaces_nothing_is_refused_at_the_start(tmp_path, monkeypatch):
    original = Path.replace

    def replace(path, target):
        if target.exists():
            raise OSError(errno.EEXIST, "File exists")
        return original(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UserError, match="--x"):
        writable_directory(tmp_path, "--x")


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("a disk that is not mounted")
    for name in ("file", "link"):
        with pytest.raises(UserError, match=f"--log_dir .*{name}: .*a file or a broken link"):
            writable_directory(tmp_path / name, "--log_dir")
    with pytest.raises(UserError, match="--log_dir"):
        writable_directory(tmp_path / "file" / "below", "--log_dir")


def test_a_pipe_is_no_file_to_write(tmp_path):
    """Nobody writes into it, so reading how it begins would never end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), os.devnull):
        with pytest.raises(UserError, match=f"--csv {path} is not a file; name a file"):
            check_replaceable(path, "--csv", "a table", "image,")


def test_only_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".last.pth.abcd_123.part").write_bytes(b"half")
    (tmp_path / "archive.part").write_bytes(b"a download")
    other = (
        "import pathlib, sys; from cifarnet.core import files\n"
        "def write(file): print('writing', flush=True); sys.stdin.read()\n"
        "files.write_atomically(pathlib.Path('file'), write)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", other],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writable_directory(tmp_path, "--x")
        left = sorted(path.name for path in tmp_path.iterdir())
        writer.stdin.close()
        assert writer.wait() == 0
    assert left[1:] == ["archive.part"]
    assert left[0].startswith(".file.")  # its writer is running
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.part", "file"]


def test_a_lock_leaves_nothing_behind(tmp_path):
    for _ in range(2):
        with exclusive(tmp_path, "--x"):
            assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]
        assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path, "--x"), exclusive(tmp_path, "--y"):  # a lock for each purpose
        assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".x.lock").mkdir()
    with pytest.raises(UserError, match=r"--x .* cannot lock it"), exclusive(tmp_path, "--x"):
        pass
