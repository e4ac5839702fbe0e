import subprocess
import sys
from pathlib import Path

import torch

from cifarnet.core.memory import free_memory

ROOT = Path(__file__).parents[2]
SIZE = 256 << 20


def test_freed_memory_stays_in_the_process_and_counts_to_the_peak():
    code = f"""
import re, torch
from cifarnet.core.memory import keep_freed_memory, peak_memory
resident = lambda: 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
keeps, before = keep_freed_memory(), resident()
block = torch.ones({SIZE}, dtype=torch.uint8)
del block
assert peak_memory() > {SIZE}
print(keeps, resident() - before > 0.9 * {SIZE})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout in ("True True\n", "False False\n"), done.stderr  # without glibc: False


def test_free_memory_is_a_part_of_the_machines():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_memory(torch.device("cpu")) < total
