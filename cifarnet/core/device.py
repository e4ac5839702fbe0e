"""What the process needs before any tensor exists: ranks, allocator, threads, device, seeds, signals."""

import contextlib
import ctypes
import errno
import io
import os
import platform
import resource
import signal
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifarnet.core.settings import RunError, TrainConfig, UserError

# What a random draw is for: `derived_seed(seed, epoch, purpose, ...)` keeps one purpose's draws from another's.
INITIAL_WEIGHTS, ORDER, AUGMENTATION, DROPOUT = range(4)

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this process's cgroup, version 2


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of one run; by default it is the only one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among those of its machine
    local_world_size: int = 1
    machine: int = 0
    attempt: int = 0  # how often torchrun has started all ranks anew

    @property
    def launcher(self) -> str:
        """What `main.py` is started with, in words."""
        if self.world_size == 1:
            return "python"
        several = self.local_world_size < self.world_size
        return "torchrun ..." if several else f"torchrun --nproc_per_node={self.world_size}"


ALONE = Ranks()


def launched_ranks() -> Ranks:
    """What torchrun says in the environment; `ALONE` without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")
    return Ranks(*(int(os.environ[name]) for name in names))


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


def start(config: TrainConfig, ranks: Ranks | None = None) -> Runtime:
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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it in deterministic mode
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.manual_seed(derived_seed(config.seed, 0, INITIAL_WEIGHTS))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    amp_dtype = _pick_amp_dtype(config, device)
    return Runtime(device, name, amp_dtype, threads, keeps_memory, ranks.rank, ranks.world_size)


def _pick_device(name: str, ranks: Ranks) -> torch.device:
    several = ranks.world_size > 1
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available() and not several, "cpu": True}
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


def _pick_amp_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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


def derived_seed(*parts: int) -> int:
    """A 63-bit seed from whole numbers in [0, 2**32); different parts, their number included, give independent seeds."""
    words = (len(parts), *parts)  # SeedSequence takes (1,) and (1, 0) for the same
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def random_state() -> dict[str, Any]:
    """The state of torch's generators, for `set_random_state`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` read; another number of CUDA devices is left as it is."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class Interrupted(KeyboardInterrupt):
    """The user, or the machine's, wish that the command ends: Ctrl-C or SIGTERM. Exit code 130 or 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Signals:
    """Meanwhile, SIGINT and SIGTERM raise `Interrupted`: at once or, inside `deferred()`, at the next `check()`.

    A second signal ends the process at once, unless `patient`: torchrun may pass on what all processes of a job got
    already, and kills what stays. Then signals stay ignored after an `Interrupted` too, or one that comes as the
    process is on its way out would change its exit code.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.received = 0
        self._deferred = False

    def __enter__(self) -> "Signals":
        self._former = {signum: signal.signal(signum, self._handle) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *problem: object) -> None:
        leaving = self.patient and kind is not None and issubclass(kind, Interrupted)
        for signum, handler in self._former.items():
            signal.signal(signum, signal.SIG_IGN if leaving else handler)

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if self.received and self.patient:
            return
        if self.received:
            os._exit(128 + signum)
        self.received = signum
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises from there as workers, signalled too, end
        if not self._deferred:
            raise Interrupted(signum)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Until the end of the block, which checks too, only `check` raises."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Raises `Interrupted` if there was a signal."""
        if self.received:
            raise Interrupted(self.received)


def print_error(problem: UserError) -> None:
    """One line on stderr."""
    print(f"error: {problem}", file=sys.stderr)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Makes a `RunError` of want of memory, of which torch's errors on the CPU and on MPS have no class of their own."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        wants = ("out of memory", "can't allocate memory")
        if isinstance(problem, MemoryError) or any(words in str(problem) for words in wants):
            raise RunError(
                "out of memory; a lower --batch_size needs less, and in training --accumulate does"
            ) from None
        raise


def run_command(
    command: Callable[[], None], tell: Callable[[UserError], None] = print_error, patient: bool = False
) -> int:
    """Runs `command` and returns its exit code; `tell` gets an error of the user's or the run's. `patient` as in
    `Signals`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of few characters, a name of many
    try:
        with Signals(patient), memory_errors():
            command()
        sys.stdout.flush()
    except UserError as problem:
        tell(problem)
        return problem.exit_code
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would write there again at its end
        if problem.errno == errno.ENOSPC:  # else who read along has seen enough (`| head`)
            print(f"error: the output could not be written ({problem.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt as problem:
        return getattr(problem, "exit_code", 130)
    return 0
