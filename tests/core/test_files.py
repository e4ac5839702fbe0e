import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifarnet.core.errors import UserError
from cifarnet.core.files import exclusive, writable_directory, write_atomically


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


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--log_dir"):
        writable_directory(tmp_path / "file", "--log_dir")
    with pytest.raises(UserError, match="--log_dir"):
        writable_directory(tmp_path / "file" / "below", "--log_dir")


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
    assert left[0].startswith(".file.")  # its writer lives
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
