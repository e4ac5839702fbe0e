"""One run in several processes, under torchrun: order of work, errors, signals, exchanges."""

import contextlib
import itertools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cifarnet.core.command import print_error, run_command
from cifarnet.core.device import Runtime
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.launch import Ranks, launched_ranks
from cifarnet.core.signals import Interrupted, Signals

T = TypeVar("T")

START_TIMEOUT = timedelta(minutes=30)  # for the start of all ranks: file systems can be slow
EXCHANGE_TIMEOUT = timedelta(minutes=2)  # after it a missing rank counts as hanging
HEARTBEAT = 0.5  # seconds from one to the next


class LostContactError(RunError):
    """Another rank ended or hangs."""


class Group:
    """The ranks of one run: which one works first, and which one prints an error. `store` is
    torchrun's, shared by all ranks. A single process needs none and never waits."""

    def __init__(self, ranks: Ranks, store: dist.Store | None = None) -> None:
        self.ranks, self._store = ranks, store

    def join(self) -> None:
        """Connects the ranks: NCCL for tensors on CUDA devices, gloo for tensors on the CPU."""
        ranks = self.ranks
        self._store.set(f"{ranks.rank} started", "")
        everyone = [f"{rank} started" for rank in range(ranks.world_size)]
        self._store.wait(everyone, START_TIMEOUT)
        both = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if both else "gloo",
            store=self._store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=EXCHANGE_TIMEOUT,
        )
        self._wait_for_all(lambda: None)  # a rank that fails now would disturb those that connect

    def first_only(self, work: Callable[[], None]) -> None:
        """Runs `work` on rank 0. Returns when it is done."""
        self._wait_for_all(work if self.ranks.rank == 0 else lambda: None)

    def in_turn(self, work: Callable[[], T]) -> T:
        """Runs `work` on rank 0, then on one rank of each other machine, then on the others. So
        each machine downloads once, and machines can share a disk. Returns when all are done."""
        own_turn = 0 if self.ranks.rank == 0 else 1 if self.ranks.local_rank == 0 else 2
        for turn in range(3):
            if turn == own_turn:
                result = self._wait_for_all(work)
            else:
                self._wait_for_all(lambda: None)
        return result

    def _wait_for_all(self, work: Callable[[], T]) -> T:
        """Runs `work`, which exchanges nothing, and waits until all ranks have finished theirs.

        The work may take long. Meanwhile a thread exchanges heartbeats, which time out if a rank
        hangs. The main thread does not wait inside torch, so signals are handled.
        """
        if self.ranks.world_size == 1:
            return work()
        done, over = threading.Event(), threading.Event()

        def beat() -> None:
            all_done = torch.tensor(0)
            while not all_done:
                all_done.fill_(done.wait(HEARTBEAT))
                if over.is_set():
                    return
                dist.all_reduce(all_done, dist.ReduceOp.MIN)

        with ThreadPoolExecutor(1) as pool, self.contact():
            heartbeats = pool.submit(beat)
            try:
                result = work()
                done.set()
                heartbeats.result()
            finally:
                over.set()
        return result

    @contextlib.contextmanager
    def contact(self) -> Iterator[None]:
        """Turns torch's errors about a missing rank into `LostContactError`, and prints it."""
        try:
            yield
        except RuntimeError as problem:
            if self._store is None or not _is_lost_contact(problem):
                raise
            why = "it ended, hangs, or its machine is gone"
            if "NCCL" in str(problem):  # NCCL also fails where it cannot start, on one machine too
                last = str(problem).strip().splitlines()[-1]
                why += f"; NCCL says: {last} (NCCL_DEBUG=INFO says more)"
            lost = LostContactError(f"lost contact with another rank: {why}")
            self.report(lost)  # now: torchrun is about to stop this rank
            raise lost from None

    def report(self, problem: UserError) -> None:
        """Prints `problem` in one line, unless another rank has printed it, or its cause."""
        if self._is_first(problem):
            print_error(type(problem)(f"rank {self.ranks.rank}: {problem}"))

    def _is_first(self, problem: UserError) -> bool:
        try:
            count = self._store.add("errors", 1)
            if not isinstance(problem, LostContactError):  # other errors cause those
                count = self._store.add(f"error: {problem}", 1)
        except RuntimeError:  # the machine of the store is gone
            return True
        return count == 1


def _is_lost_contact(problem: RuntimeError) -> bool:
    """Whether torch raised `problem` because of another rank. gloo has no error class."""
    text = str(problem)
    return isinstance(problem, dist.DistError) or "gloo" in text or "NCCL" in text


def run_on_ranks(command: Callable[[Group], None]) -> int:
    """Runs `command` as one of torchrun's ranks, or alone. Returns the exit code of `run_command`.

    A rank that is killed or fails ends the others at once, one that hangs after `EXCHANGE_TIMEOUT`.
    One rank prints why.
    """
    ranks = launched_ranks()
    if ranks.world_size == 1:
        return run_command(lambda: command(Group(ranks)))
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=START_TIMEOUT))
    except dist.DistError:
        return print_error(LostContactError("torchrun cannot be reached; check MASTER_ADDR"))
    # torchrun keeps its store. Restarted ranks must not read what the former ones wrote.
    group = Group(ranks, dist.PrefixStore(f"attempt {ranks.attempt}", store))

    def run() -> None:
        with group.contact():
            group.join()
            command(group)

    code = 1
    try:
        code = run_command(run, group.report, patient=True)
    except Exception as bug:  # its traceback follows
        group.report(RunError(f"{type(bug).__name__}: {bug}"))
        raise
    finally:
        # Disconnect after the error is printed, because the others notice at once. gloo can abort
        # Python's exit (SIGABRT) if it stays connected. NCCL would wait for ranks that are gone.
        if dist.is_initialized() and (code == 0 or not torch.cuda.is_available()):
            dist.destroy_process_group()
    return code


def agreed_check(signals: Signals, runtime: Runtime) -> Callable[[], None]:
    """`signals.check` for several ranks: raises `Interrupted` on all of them at the same call.

    All ranks must call it equally often. On CUDA only every 50th call asks the other ranks, because
    the host waits for the answer and the device would run out of work.
    """
    if runtime.world_size == 1:
        return signals.check
    calls, every = itertools.count(1), 1 if runtime.device.type == "cpu" else 50

    def check() -> None:
        if next(calls) % every == 0:
            received = torch.tensor(signals.received)
            dist.all_reduce(received, dist.ReduceOp.MAX)
            if received:
                raise Interrupted(int(received))

    return check


def broadcast_from_rank0(make: Callable[[], T], runtime: Runtime) -> T:
    """Calls `make` on rank 0 and returns its result on all ranks."""
    if runtime.world_size == 1:
        return make()
    results = [make() if runtime.rank == 0 else None]
    dist.broadcast_object_list(results)
    return results[0]


def gathered(part: T, runtime: Runtime) -> list[T]:
    """The `part` of each rank, in the order of the ranks."""
    parts = [part] * runtime.world_size
    if runtime.world_size > 1:
        dist.all_gather_object(parts, part)
    return parts


def check_equal(value: object, problem: str, runtime: Runtime) -> None:
    """Raises `UserError` with the sentence `problem` if `value` is not the same on all ranks."""
    first, *others = gathered(value, runtime)
    if any(other != first for other in others):
        raise UserError(problem)


def sum_over_ranks(numbers: list[float], runtime: Runtime) -> list[float]:
    """Sums each of `numbers` over the ranks."""
    return [sum(column) for column in zip(*gathered(numbers, runtime), strict=True)]


def earliest_over_ranks(step: int, runtime: Runtime) -> int:
    """The lowest `step` of all ranks; -1 means none."""
    return min((value for value in gathered(step, runtime) if value >= 0), default=-1)


@torch.no_grad()
def average_over_ranks(tensors: Iterable[Tensor], runtime: Runtime) -> None:
    """Replaces each floating-point tensor by its mean over the ranks, in place, in one exchange."""
    if runtime.world_size == 1:
        return
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    flat = torch.cat([tensor.flatten() for tensor in floats])
    dist.all_reduce(flat)
    flat /= runtime.world_size
    for tensor, mean in zip(floats, flat.split([tensor.numel() for tensor in floats]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def data_parallel(model: nn.Module, runtime: Runtime) -> nn.Module:
    """`model` with gradients averaged over the ranks during backward; itself on one rank. Buffers
    stay different on each rank until `average_over_ranks`."""
    if runtime.world_size == 1:
        return model
    devices = None if runtime.device.type == "cpu" else [runtime.device.index]
    # torch warns of weights whose last sides have length 1. Strides mean nothing there.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers
        return DistributedDataParallel(
            model, devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def micro_batches(
    model: nn.Module, images: Tensor, labels: Tensor, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Splits `images` [B,...] and `labels` [B] into `count` parts. Ranks exchange gradients in the
    backward pass of the last part only."""
    for place, part in enumerate(
        zip(images.tensor_split(count), labels.tensor_split(count), strict=True), 1
    ):
        skips = place < count and isinstance(model, DistributedDataParallel)
        with model.no_sync() if skips else contextlib.nullcontext():
            yield part
