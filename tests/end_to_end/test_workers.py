"""Workers that end, and machines on which they cannot start."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import SHORT, assert_one_line

from cifarnet.augment.per_image import PerImageEngine

ROOT = Path(__file__).parents[2]


def test_a_worker_that_is_killed_ends_the_run_in_one_line(command, monkeypatch):
    here = os.getpid()

    def kill_worker(*arguments):
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(PerImageEngine, "__call__", kill_worker)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    done = command("main", *SHORT, "--num_workers", "1")
    assert_one_line(done, 1, "--num_workers 0", "--augment_engine batched")


def in_own_mounts(script: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a shell script that may mount; skips the test where that is not allowed."""
    unshare = ["unshare", "--mount", "bash", "-c"]
    probe = [*unshare, "mount -t tmpfs tmpfs /dev/shm"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs to mount in a name space of its own")
    command = f"set -e; cd {folder}; {script}"
    return subprocess.run([*unshare, command], capture_output=True, text=True, timeout=300)


def test_a_small_shared_memory_is_enough(tmp_path):
    """A batch of 60 images is 184 KB; shared memory has room for the workers' locks only."""
    flags = " ".join((*SHORT, "--num_workers 2", "--limit_train 60", "--batch_size 60"))
    run = f"{sys.executable} {ROOT}/main.py {flags}"
    done = in_own_mounts(f"mount -t tmpfs -o size=64k tmpfs /dev/shm; {run}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_locks_a_run_starts_no_workers_unless_a_number_is_asked_for(command, monkeypatch):
    """As with a /dev/shm that is read-only."""

    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", refuse)
    at = SHORT.index("--num_workers")
    done = command("main", *SHORT[:at], *SHORT[at + 2 :])
    assert (done.code, done.err) == (0, "")
    assert "no workers: /dev/shm cannot be written" in done.out
    done = command("main", *SHORT, "--num_workers", "1")
    assert_one_line(done, 1, "Read-only file system", "--num_workers 0", "--augment_engine batched")
