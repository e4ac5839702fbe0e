"""Cores, and threads under a limit of processes, which the commands meet before numpy is
imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifarnet.core import threads
from cifarnet.core.threads import available_cores

ROOT = Path(__file__).parents[2]
CODE = """
import os, sys, threading
from cifarnet.core.command import run_command
os.cpu_count = lambda: 8
left, start = [int(sys.argv[1])], threading.Thread.start
def limited_start(thread):
    if not left[0]:
        raise RuntimeError("can't start new thread")
    left[0] -= 1
    start(thread)
threading.Thread.start = limited_start
def command():
    print(*[os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")])
    print("numpy" in sys.modules)
sys.exit(run_command(command))
"""


def test_cores_respect_affinity_and_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    assert available_cores() == 8
    for quota, cores in (("max 1000", 8), ("2500 1000", 2), ("100 1000", 1), ("nonsense", 8)):
        (tmp_path / "cpu.max").write_text(quota)
        assert available_cores() == cores
    (tmp_path / "cpu").mkdir()  # cgroups of version 1
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("50000\n")
    for quota, cores in (("-1", 8), ("150000", 3), ("100", 1)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert available_cores() == cores


@pytest.mark.parametrize(
    ("startable", "environment", "threads"),
    [(0, {}, "1 1"), (20, {}, "4 4"), (100, {}, "None None"), (0, {"OMP_NUM_THREADS": "2"}, "2 1")],
    ids=str,
)
def test_libraries_get_no_more_threads_than_can_start(startable, environment, threads):
    inherited = {name: v for name, v in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(startable)],
        cwd=ROOT, env=inherited | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{threads}\nFalse\n", "")
