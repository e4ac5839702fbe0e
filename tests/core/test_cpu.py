import os
import subprocess
import sys
from pathlib import Path

from cifarnet.core import cpu
from cifarnet.core.cpu import available_cores

ROOT = Path(__file__).parents[2]


def test_cores_respect_affinity_and_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpu, "CGROUP", tmp_path)
    assert available_cores() == 8
    for quota, cores in (
        ("max 100000", 8),
        ("250000 100000", 2),
        ("10000 100000", 1),
        ("nonsense", 8),
    ):
        (tmp_path / "cpu.max").write_text(quota)
        assert available_cores() == cores
    (tmp_path / "cpu").mkdir()  # cgroups of version 1
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("50000\n")
    for quota, cores in (("-1", 8), ("150000", 3), ("100", 1)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert available_cores() == cores


def test_bf16_that_the_environment_forbids_is_noticed():
    code = "from cifarnet.core.cpu import has_bf16_instructions as has; print(has())"
    forbidden = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=forbidden, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
