"""Sets up a process before the first tensor exists: device, precision, threads, allocator."""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks, launched_ranks
from cifarnet.core.machine import cpu_name, has_bf16_instructions, keep_freed_memory
from cifarnet.core.seeds import INITIAL_WEIGHTS, derived_seed
from cifarnet.core.threads import available_cores, startable_threads, thread_limit


@dataclass(frozen=True)
class Runtime:
    """Device, precision and threads of this process."""

    device: torch.device
    device_name: str
    amp_dtype: torch.dtype | None  # None: no autocast
    threads: int
    keeps_memory: bool  # freed activations stay in the process
    rank: int = 0
    world_size: int = 1
    note: str = ""  # what --amp does on this device, where it is not what one expects

    @property
    def precision(self) -> str:
        """The precision in words."""
        if self.amp_dtype is None:
            if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 8:
                return "float32, products in TF32"
            return "float32"
        return str(self.amp_dtype).removeprefix("torch.")

    @property
    def computed_on(self) -> str:
        """Device and precision in words. With others, the same run gives other figures."""
        return f"{self.device.type} in {self.precision}"

    def autocast(self) -> contextlib.AbstractContextManager:
        """Returns the context for forward passes."""
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)


# `PrecisionSettings` of cifarnet/settings/precision.py. Files in core import nothing from the other
# folders, so they cannot name this type.
Precision = Any


def init_process(precision: Precision, seed: int = 0, ranks: Ranks | None = None) -> Runtime:
    """Sets up this process. Call it before the first tensor exists.

    `seed` determines the initial weights. `ranks` is the place of this process among several; None:
    the command cannot run as several. Raises `UserError` if the device, or its precision, is not
    available.
    """
    if ranks is None and launched_ranks().world_size > 1:
        raise UserError(
            "the command supports one process only; start it with python, without torchrun"
        )
    ranks = ranks or ALONE
    device = _pick_device(precision.device, ranks)
    if precision.sync_bn and device.type != "cuda":
        raise UserError(f"--sync_bn needs CUDA, but the device is {device.type}; leave it out")
    amp_dtype = _pick_amp_dtype(precision, device)
    keeps_memory = precision.keep_memory and device.type == "cpu" and keep_freed_memory()
    # Processors compute up to a hundred times slower with numbers below 1e-38, and the momentum of
    # unused filters decays to them. New threads inherit this from the one that starts them.
    torch.set_flush_denormal(True)
    threads = max(1, available_cores() // ranks.local_world_size)
    threads = startable_threads(min(threads, _thread_limit(ranks)))
    torch.set_num_threads(threads)
    if precision.deterministic:
        # cuBLAS requires this in deterministic mode.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if precision.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(precision.deterministic)  # takes a second to import
    torch.backends.cudnn.benchmark = not precision.deterministic
    # Matrix products in TF32 on CUDA. torch's default does this for convolutions only.
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    torch.manual_seed(derived_seed(seed, 0, INITIAL_WEIGHTS))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    place = ranks.rank, ranks.world_size
    slow = precision.amp and _only_emulates_bf16(device)
    note = SLOW_AMP[amp_dtype] if slow and device.type == "cpu" else ""
    return Runtime(device, name, amp_dtype, threads, keeps_memory, *place, note)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies `values` to `device`; on CUDA without waiting for it. On MPS torch would read `values`
    later, when their memory may hold something else (pytorch issue 189690)."""
    return values.to(device, non_blocking=device.type == "cuda")


def _thread_limit(ranks: Ranks) -> float:
    """`thread_limit`, but not the default of torchrun, which is 1 for several processes."""
    limit = thread_limit()
    return math.inf if ranks.local_world_size > 1 and limit == 1 else limit


def _pick_device(name: str, ranks: Ranks) -> torch.device:
    several = ranks.world_size > 1
    available = {
        "cuda": torch.cuda.is_available() and (name == "cpu" or _has_kernels()),
        "mps": torch.backends.mps.is_available() and not several,
        "cpu": True,
    }
    usable = [kind for kind, is_available in available.items() if is_available]
    if name == "auto":
        name = usable[0]
    if not available[name]:
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


def _has_kernels() -> bool:
    """Whether this build of torch supports the CUDA device: it may be too old."""
    known = [arch[3:] for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    lowest = min((int(version) for version in known if version.isdigit()), default=0)
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor >= lowest


def _pick_amp_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    if precision.amp_dtype == "fp16" and device.type != "cuda":
        raise UserError(f"--amp_dtype fp16 needs CUDA, but the device is {device.type}; use bf16")
    return AMP_DTYPES[precision.amp_dtype](device) if precision.amp else None


def _only_emulates_bf16(device: torch.device) -> bool:
    """Whether `device` has no instructions for bfloat16."""
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not has_bf16_instructions()


def _fast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16; without instructions for it float16 on CUDA devices, and no autocast on a CPU."""
    if not _only_emulates_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else None


AMP_DTYPES: dict[str, Callable[[torch.device], torch.dtype | None]] = {
    "auto": _fast_dtype,
    "bf16": lambda device: torch.bfloat16,
    "fp16": lambda device: torch.float16,
}  # by --amp_dtype


SLOW_AMP = {
    None: "float32 instead of --amp: this CPU has no bf16 instructions, so bf16 takes many times "
    "longer; --amp_dtype bf16 uses it anyway",
    torch.bfloat16: "warning: bf16 takes many times longer on a CPU without instructions for it",
}  # by the dtype, on a CPU that only emulates bf16
