"""Cores, threads and workers that this machine allows: affinity, quotas, a limit of processes as
`ulimit -u` sets it, the locks of processes. Imports nothing slow."""

import contextlib
import math
import multiprocessing
import os
import sys
import threading
import warnings
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # in a container: its own limits
POOLS = 3  # libraries that start a thread per core: OpenBLAS of numpy and of scipy, OpenMP
MOST_CORES = 64  # that OpenBLAS uses
OTHERS = 8  # threads and processes of our own: workers, progress bars, reading images


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


def thread_limit() -> float:
    """The most threads that OMP_NUM_THREADS allows; infinite if it names no number above 0."""
    value = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(value) if value.isdecimal() and int(value) else math.inf


def startable_threads(most: int) -> int:
    """Returns how many threads this process can have, up to `most`: a limit of processes and
    threads (`ulimit -u`) may leave fewer. OpenMP would end the process."""
    end, threads = threading.Event(), []
    with contextlib.suppress(RuntimeError):
        while len(threads) < most - 1:
            thread = threading.Thread(target=end.wait)
            thread.start()
            threads.append(thread)
    end.set()
    for thread in threads:
        thread.join()
    return len(threads) + 1


def fit_libraries() -> None:
    """Limits the threads of numpy, scipy and torch to those that can start: OpenBLAS would print
    errors or end the process. Has no effect once they are imported."""
    # scikit-learn imports joblib, which would warn of a /dev/shm without locks.
    os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")
    if "numpy" in sys.modules:
        return
    wanted = POOLS * min(os.cpu_count() or 1, MOST_CORES) + OTHERS
    startable = startable_threads(wanted)
    if startable < wanted:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, str(max(1, (startable - OTHERS) // POOLS)))
        warnings.filterwarnings("ignore", "tqdm:disabling monitor")


def has_locks() -> bool:
    """Whether processes can share locks. These lie in /dev/shm, which may be read-only, full or
    missing."""
    try:
        multiprocessing.Lock()
    except (ImportError, OSError):
        return False
    return True
