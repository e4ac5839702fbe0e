"""Device, precision, threads and memory allocator: set up before the first tensor exists."""

import contextlib
import ctypes
import math
import os
import platform
import re
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks, launched_ranks
from cifarnet.core.seeds import INITIAL_WEIGHTS, derived_seed

CGROUP = Path("/sys/fs/cgroup")  # where containers see their own


@dataclass(frozen=True)
class Runtime:
    """Where and how this process computes."""

    device: torch.device
    device_name: str
    amp_dtype: torch.dtype | None  # None: no autocast
    threads: int
    keeps_memory: bool  # freed activations stay in the process
    rank: int = 0
    world_size: int = 1
    emulates_bf16: bool = False  # a CPU without bf16 instructions computes in bfloat16

    @property
    def precision(self) -> str:
        """The precision in words."""
        if self.amp_dtype is None:
            return "float32, products in TF32" if self.device.type == "cuda" else "float32"
        return str(self.amp_dtype).removeprefix("torch.")

    @property
    def computed_on(self) -> str:
        """Device and precision in words. If they differ, the same run gives other figures."""
        return f"{self.device.type} in {self.precision}"

    def autocast(self) -> contextlib.AbstractContextManager:
        """Returns the context for forward passes."""
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)


class Precision(Protocol):
    """The settings that `init_process` needs: see `PrecisionSettings`."""

    device: str
    amp: bool
    amp_dtype: str
    sync_bn: bool
    keep_memory: bool
    deterministic: bool


def init_process(precision: Precision, seed: int = 0, ranks: Ranks | None = None) -> Runtime:
    """Sets up this process; call it before the first tensor exists.

    `seed` is that of the initial weights. `ranks` is the place of this process among several; None:
    the command cannot run as several. Raises `UserError` if the device or its precision is missing.
    """
    if ranks is None and launched_ranks().world_size > 1:
        raise UserError("this command runs as one process; start it with python, without torchrun")
    ranks = ranks or ALONE
    device = _pick_device(precision.device, ranks)
    if precision.sync_bn and device.type != "cuda":
        raise UserError(f"--sync_bn needs CUDA, but the device is {device.type}; leave it out")
    amp_dtype = _pick_amp_dtype(precision, device)
    keeps_memory = precision.keep_memory and device.type == "cpu" and _keep_freed_memory()
    threads = max(1, available_cores() // ranks.local_world_size)
    threads = min(threads, _threads_asked_for(ranks))
    torch.set_num_threads(threads)
    if precision.deterministic:
        # cuBLAS requires this in deterministic mode.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # scikit-learn brings joblib, which would warn of a /dev/shm that takes no locks.
    os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")
    if precision.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(precision.deterministic)  # takes a second to import
    torch.backends.cudnn.benchmark = not precision.deterministic
    # Matrix products in TF32 on CUDA. torch's default does this for convolutions only.
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    torch.manual_seed(derived_seed(seed, 0, INITIAL_WEIGHTS))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    place = ranks.rank, ranks.world_size
    emulates = amp_dtype is torch.bfloat16 and device.type == "cpu" and not has_bf16_instructions()
    return Runtime(device, name, amp_dtype, threads, keeps_memory, *place, emulates)


def _pick_device(name: str, ranks: Ranks) -> torch.device:
    several = ranks.world_size > 1
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and not several,
        "cpu": True,
    }
    usable = [kind for kind, is_there in there.items() if is_there]
    if name == "auto":
        name = usable[0]
    if not there[name]:
        raise UserError(f"--device {name} is not available here; use {' or '.join(usable)}")
    if name != "cuda" or not several:
        return torch.device(name)
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        raise UserError(
            f"{ranks.local_world_size} processes on a machine with {count} CUDA devices: give "
            f"torchrun --nproc_per_node={count}, or use --device cpu"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def _pick_amp_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    wanted = precision.amp_dtype
    if wanted == "fp16" and device.type != "cuda":
        raise UserError(f"--amp_dtype fp16 needs CUDA, but the device is {device.type}; use bf16")
    if not precision.amp:
        return None
    if wanted == "auto" and device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.float16 if wanted == "fp16" else torch.bfloat16


SLOW_AMP = "warning: --amp takes many times longer on a CPU without bf16 instructions"


def without_amp(runtime: Runtime) -> Runtime:
    """`runtime`, but in float32."""
    return replace(runtime, amp_dtype=None, emulates_bf16=False)


def has_bf16_instructions() -> bool:
    """Whether this CPU computes in bfloat16; without its instructions that is several times slower.

    Environment variables such as ONEDNN_MAX_CPU_ISA can forbid the instructions.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    # oneDNN answers yes for any x86 CPU with AVX-512, but some of those only emulate bfloat16.
    x86 = platform.machine() in ("x86_64", "AMD64")
    there = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return (there or not x86) and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Returns how many cores this process may use, by its affinity and its cgroup's quota; >= 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    versions = (
        ("cpu.max",),  # 2: "250000 100000", or "max 100000" without a quota
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),  # 1: a quota of -1 is none
    )
    for names in versions:
        with contextlib.suppress(OSError, ValueError):
            text = " ".join((CGROUP / name).read_text() for name in names)
            quota, period = map(int, text.split())
            if quota > 0:
                cores = min(cores, round(quota / period))
    return max(1, cores)


def _threads_asked_for(ranks: Ranks) -> float:
    """The most threads that OMP_NUM_THREADS allows; infinite if it is not set."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    by_torchrun = ranks.local_world_size > 1 and asked == "1"  # its default for several processes
    return int(asked) if asked.isdecimal() and int(asked) and not by_torchrun else math.inf


def _keep_freed_memory() -> bool:
    """Tells glibc to keep large freed blocks in the process; returns False without glibc.

    A training step allocates and frees gigabytes of activations. By default glibc maps each block
    anew and the kernel fills every page with zeros: most of a step's time on the CPU.

    The heap, where the blocks then lie, should use huge pages. That can only be said of memory
    that the heap already has, so one block as large as a training run needs is allocated, marked
    and freed, without being touched.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h; a threshold of -1 means never
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


def peak_memory(device: str = "cpu") -> int:
    """Returns the most memory that this process has held so far, in bytes: on CUDA, of tensors on
    the device; else of the whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS: bytes, Linux: KiB


def free_memory(device: torch.device) -> int | None:
    """Returns how many bytes are free, on a CUDA device or in this machine; None: not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        return int(found[1]) * 1024 if found else None
    return None
