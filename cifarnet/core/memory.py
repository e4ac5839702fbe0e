"""Memory: the allocator of a process on the CPU, and how much is used and free."""

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

import torch


def keep_freed_memory() -> bool:
    """Tells glibc to keep large freed blocks in the process; returns False without glibc.

    A training step allocates and frees gigabytes of activations. By default glibc maps each block
    again and the kernel fills every page with zeros: most of a step's time on the CPU.

    The heap, which then holds the blocks, should use huge pages. Only memory that the heap already
    has can be marked so. Therefore one block as large as a training run needs is allocated, marked
    and freed, without being touched.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h; a threshold of -1 means never
    accepted = libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size, page, madv_hugepage = 8 << 30, 2 << 20, 14
    block = libc.malloc(size)
    if block:
        libc.madvise(-(-block // page) * page, size - page, madv_hugepage)
        libc.free(block)
    return bool(accepted)


def peak_memory(device: str = "cpu") -> int:
    """Returns the peak memory of this process so far, in bytes.

    On CUDA it is that of the tensors on the device, else that of the whole process.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS: bytes, Linux: KiB


def free_memory(device: torch.device) -> int | None:
    """Returns how many bytes are free on a CUDA device, else in this machine; None: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        match = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        return int(match[1]) * 1024 if match else None
    return None
