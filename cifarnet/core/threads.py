"""Threads and workers that this machine allows: a limit of processes, as `ulimit -u` sets it, and
the locks of processes. Imports nothing slow."""

import contextlib
import multiprocessing
import os
import sys
import threading
import warnings

POOLS = 3  # libraries that start a thread per core: OpenBLAS of numpy and of scipy, OpenMP
MOST_CORES = 64  # that OpenBLAS uses
OTHERS = 8  # threads and processes of our own: workers, progress bars, reading images


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
