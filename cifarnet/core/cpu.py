"""The CPU: cores that this process may use, name, bfloat16."""

import contextlib
import os
import platform
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # in a container: its own limits


def available_cores() -> int:
    """Returns how many cores this process may use, by its affinity and its cgroup's quota; >= 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = (
        ("cpu.max",),  # cgroups 2: "250000 100000", or "max 100000" without a quota
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),  # cgroups 1: -1 without a quota
    )
    for names in quotas:
        with contextlib.suppress(OSError, ValueError):
            text = " ".join((CGROUP / name).read_text() for name in names)
            quota, period = map(int, text.split())
            if quota > 0:
                cores = min(cores, round(quota / period))
    return max(1, cores)


def has_bf16_instructions() -> bool:
    """Whether this CPU has instructions for bfloat16. Emulating them is several times slower.

    Environment variables such as ONEDNN_MAX_CPU_ISA can forbid the instructions.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    # oneDNN answers yes for any x86 CPU with AVX-512, but some of those only emulate bfloat16.
    x86 = platform.machine() in ("x86_64", "AMD64")
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return (native or not x86) and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cpu_name() -> str:
    """The model of the CPU, as in /proc/cpuinfo; else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
