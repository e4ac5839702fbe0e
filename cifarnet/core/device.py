"""What the process needs before any tensor exists: ranks, allocator, threads, device, seeds, signals."""

import contextlib
import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks, launched_ranks
from cifarnet.core.seeds import INITIAL_WEIGHTS, derived_seed
from cifarnet.core.settings import Settings

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this process's cgroup, version 2


@dataclass(frozen=True)
class Runtime:
    """Where and how tensors are computed."""

    device: torch.device
    device_name: str
    amp_dtype: torch.dtype | None  # None: no autocast
    threads: int
    keeps_memory: bool  # freed activations stay inside the process
    rank: int = 0
    world_size: int = 1

    @property
    def precision(self) -> str:
        """What is computed with, in words."""
        if self.amp_dtype is None:
            return "float32, products in TF32" if self.device.type == "cuda" else "float32"
        return str(self.amp_dtype).removeprefix("torch.")

    @property
    def computed_on(self) -> str:
        """Device and precision, in words; with others the same run gives other figures."""
        return f"{self.device.type} in {self.precision}"

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context that forward passes run in."""
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)


def start(config: Settings, ranks: Ranks | None = None) -> Runtime:
    """Sets the process up for `config`, as one of `ranks` (None: a command for one process). Call it before the first
    tensor.

    Raises `UserError` for a device that is not there, a precision that it does not have, or a batch that cannot be
    shared out evenly.
    """
    if ranks is None and launched_ranks().world_size > 1:
        raise UserError("this command is one process; start it with python, without torchrun")
    ranks = ranks or ALONE
    parts = ranks.world_size * config.accumulate
    if config.batch_size % parts:
        below = max(1, config.batch_size // parts) * parts
        raise UserError(
            f"--batch_size {config.batch_size} cannot be divided evenly among {ranks.world_size} processes and "
            f"--accumulate {config.accumulate}; take a multiple of {parts}, such as {below}"
        )
    device = _pick_device(config.device, ranks)
    if config.sync_bn and device.type != "cuda":
        raise UserError(f"--sync_bn needs CUDA, and the device is {device.type}; leave it off")
    keeps_memory = config.keep_memory and device.type == "cpu" and _keep_freed_memory()
    threads = max(1, available_cores() // ranks.local_world_size)
    torch.set_num_threads(threads)
    if config.deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS asks for it in deterministic mode
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.manual_seed(derived_seed(config.seed, 0, INITIAL_WEIGHTS))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    amp_dtype = _pick_amp_dtype(config, device)
    return Runtime(device, name, amp_dtype, threads, keeps_memory, ranks.rank, ranks.world_size)


def _pick_device(name: str, ranks: Ranks) -> torch.device:
    several = ranks.world_size > 1
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and not several,
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, usable in there.items() if usable)
    if not there[name]:
        usable = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise UserError(f"--device {name}: there is no such device here; usable: {usable}")
    if name != "cuda" or not several:
        return torch.device(name)
    if ranks.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{ranks.local_world_size} processes on a machine with {torch.cuda.device_count()} CUDA devices: give "
            f"torchrun --nproc_per_node={torch.cuda.device_count()}, or take --device cpu"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def _pick_amp_dtype(config: Settings, device: torch.device) -> torch.dtype | None:
    if config.amp_dtype == "fp16" and device.type != "cuda":
        raise UserError(f"--amp_dtype fp16 needs CUDA, and the device is {device.type}; use bf16")
    if not config.amp:
        return None
    if config.amp_dtype == "fp16" or (
        config.amp_dtype == "auto"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return torch.float16
    return torch.bfloat16


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """The cores that this process may use, by its affinity and its cgroup's quota, at least 1."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with contextlib.suppress(OSError, ValueError):
        quota, period = CPU_QUOTA.read_text().split()  # "max 100000" without a quota
        cores = min(cores, round(int(quota) / int(period)))
    return max(1, cores)


def _keep_freed_memory() -> bool:
    """Tells glibc not to hand large freed blocks back to the kernel; False where the C library is another.

    A training step frees and allocates gigabytes of activations. By default glibc maps each of them anew,
    and the kernel zeroes every page again: most of a step's time on the CPU. The heap, which the blocks then
    come from, is also to consist of huge pages; to say so for memory that it does not have yet, a block of the
    size of a training run is taken, told about and given back, untouched.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h; a threshold of -1 is none
    kept = libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size, page, madv_hugepage = 8 << 30, 2 << 20, 14
    block = libc.malloc(size)
    if block:
        libc.madvise(-(-block // page) * page, size - page, madv_hugepage)
        libc.free(block)
    return bool(kept)


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
