import itertools
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from cifarnet.core.machine import free_memory, has_bf16_instructions, versions

ROOT = Path(__file__).parents[2]
SIZE = 256 << 20


def test_bf16_counts_where_neither_the_cpu_nor_onednn_emulates_it(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for avx512, amx, onednn in itertools.product((True, False), repeat=3):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=onednn: has)
        has = (avx512 or amx) and onednn
        assert has_bf16_instructions() is has


def test_bf16_that_the_environment_forbids_is_noticed():
    code = "from cifarnet.core.machine import has_bf16_instructions as has; print(has())"
    forbidden = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=forbidden, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_freed_memory_stays_in_the_process_and_counts_to_the_peak():
    code = f"""
import re, torch
from cifarnet.core.machine import keep_freed_memory, peak_memory
resident = lambda: 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
keeps, before = keep_freed_memory(), resident()
block = torch.ones({SIZE}, dtype=torch.uint8)
del block
assert peak_memory() > {SIZE}
print(keeps, resident() - before > 0.9 * {SIZE})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    keeps = platform.libc_ver()[0] == "glibc"
    assert done.stdout == f"{keeps} {keeps}\n", done.stderr


def test_free_memory_is_a_part_of_the_machines():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_memory(torch.device("cpu")) < total


def test_versions_are_those_of_the_installed_packages():
    assert versions()["torch"] == version("torch")
    assert versions()["python"] == platform.python_version()
