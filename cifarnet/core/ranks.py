"""Several processes as one run, under torchrun: who goes first, what all agree on, sums and means over the ranks."""

import contextlib
import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cifarnet.core.commandline import memory_errors, print_error, run_command
from cifarnet.core.device import Runtime
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.launch import Ranks, launched_ranks
from cifarnet.core.signals import Interrupted, Signals

T = TypeVar("T")

PATIENCE = timedelta(
    seconds=50
)  # without a sign of life, after which a rank hangs, or its machine is gone
START = timedelta(minutes=30)  # for all ranks to have started: some file systems are slow


class LostContactError(RunError):
    """Another rank is gone."""


class Group:
    """The ranks of one run, and the order in which they work; one process alone does everything at once.

    They coordinate through `store`, a key-value store that `joined` opens.
    """

    def __init__(self, ranks: Ranks, store: dist.Store | None = None) -> None:
        self.ranks, self._store = ranks, store
        self._turns = itertools.count()
        self._told: set[str] = set()

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Meanwhile the ranks can exchange tensors: by NCCL on CUDA devices, by gloo on the CPU."""
        ranks = self.ranks
        if ranks.world_size == 1:
            yield
            return
        with self.contact():
            store, _, _ = next(dist.rendezvous("env://", timeout=START))
            # or a restart would find what the dead left in it
            store = dist.PrefixStore(f"attempt {ranks.attempt}", store)
            self._store = dist.PrefixStore("turns", store)
            self._store.add("started", 1)
            self._wait(lambda: self._store.add("started", 0) == ranks.world_size, START)
            both = torch.cuda.is_available() and dist.is_nccl_available()
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if both else "gloo",
                store=store,
                rank=ranks.rank,
                world_size=ranks.world_size,
                timeout=PATIENCE,
            )
            over = False
            try:
                yield
                over = True
            except UserError as problem:
                self.tell(problem)  # before the others notice that this rank is gone
                raise
            finally:
                # after an error NCCL would wait for ranks that are gone; gloo's threads do not, but left to the end
                # of the interpreter they can abort the process (SIGABRT)
                if over or not both:
                    dist.destroy_process_group()

    @contextlib.contextmanager
    def contact(self) -> Iterator[None]:
        """Has what torch raises where another rank is gone become a `LostContactError`, and tells it at once."""
        try:
            yield
        except RuntimeError as problem:
            if self.ranks.world_size == 1 or not is_lost_contact(problem):
                raise
            lost = LostContactError(
                "lost contact with another rank (it ended, hangs, or its machine is gone)"
            )
            self.tell(lost)
            raise lost from None

    def tell(self, problem: UserError) -> None:
        """One line on stderr: with the rank, where there are several, and once for all that find the same."""
        if self.ranks.world_size == 1:
            print_error(problem)
        elif self._is_news(problem):
            print_error(type(problem)(f"rank {self.ranks.rank}: {problem}"))

    def _is_news(self, problem: UserError) -> bool:
        text = str(problem)
        if text in self._told:
            return False
        self._told.add(text)
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the store may be gone too
                first = self._store.add("errors", 1) == 1
                return (
                    first
                    if isinstance(problem, LostContactError)
                    else self._store.add(f"error: {text}", 1) == 1
                )
        return True

    def in_turn(self, work: Callable[[], T]) -> T:
        """`work()`, done by the first rank of all, then by the first of each other machine, which may share its
        disks, then by the others; returns once all are through."""
        ranks = self.ranks
        if ranks.world_size == 1:
            return work()
        if ranks.rank:
            machine = ranks.machine if ranks.local_rank else 0
            self._wait(lambda: self._store.check([f"machine {machine} is through"]))
        with self._signs_of_life():
            result = work()
        if ranks.local_rank == 0:
            self._store.set(f"machine {ranks.machine} is through", "")
        self._store.add("through", 1)
        self._wait(lambda: self._store.add("through", 0) == ranks.world_size)
        return result

    def first_only(self, work: Callable[[], None]) -> None:
        """`work()`, done by the first rank, for which the others wait as long as it takes."""
        turn = f"turn {next(self._turns)}"
        if self.ranks.world_size == 1:
            work()
        elif self.ranks.rank == 0:
            with self._signs_of_life():
                work()
            self._store.set(turn, "")
        else:
            self._wait(lambda: self._store.check([turn]))

    def _wait(self, ready: Callable[[], bool], patience: timedelta = PATIENCE) -> None:
        """Polls, so that a signal is noticed. Raises `LostContactError` once a rank has told of an error, or when none
        gave a sign of life for so long."""
        signs, since, pause = -1, time.monotonic(), 0.001
        while not ready():
            if signs != (signs := self._store.add("signs of life", 0)):
                since = time.monotonic()
            if self._store.add("errors", 0) or time.monotonic() - since > patience.total_seconds():
                raise LostContactError("waited in vain for another rank")
            time.sleep(pause)
            pause = min(0.1, 2 * pause)

    @contextlib.contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Has those who wait for this rank know that it lives, as long as its work may take."""
        over = threading.Event()

        def signal() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone: others will tell
                while not over.wait(PATIENCE.total_seconds() / 10):
                    self._store.add("signs of life", 1)

        thread = threading.Thread(target=signal, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def is_lost_contact(problem: RuntimeError) -> bool:
    """Whether torch raised `problem` because another rank is gone: gloo's errors have no class of their own."""
    return isinstance(problem, dist.DistError) or any(
        name in str(problem) for name in ("gloo", "NCCL")
    )


def run_on_ranks(command: Callable[[Group], None]) -> int:
    """`run_command` for a command that torchrun may have started as several ranks; its exit codes."""
    group = Group(launched_ranks())

    def run() -> None:
        try:
            with group.joined(), memory_errors():
                command(group)
        except Exception as problem:
            if group.ranks.world_size > 1 and not isinstance(
                problem, UserError
            ):  # a bug, whose traceback follows
                group.tell(RunError(f"{type(problem).__name__}: {problem}"))
            raise

    return run_command(run, group.tell, group.ranks.world_size > 1)


def agreed_check(signals: Signals, runtime: Runtime) -> Callable[[], None]:
    """`signals.check`, which all ranks are to call equally often: it raises `Interrupted` on all of them at the same
    call. On CUDA they ask each other every 50th time, so that the device never waits for it."""
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


def from_first_rank(make: Callable[[], T], runtime: Runtime) -> T:
    """What `make()` returns on the first rank, on all of them."""
    if runtime.world_size == 1:
        return make()
    made = [make() if runtime.rank == 0 else None]
    dist.broadcast_object_list(made)
    return made[0]


def gathered(part: T, runtime: Runtime) -> list[T]:
    """The `part` of each rank, in their order."""
    parts = [part] * runtime.world_size
    if runtime.world_size > 1:
        dist.all_gather_object(parts, part)
    return parts


def sum_over_ranks(numbers: list[float], runtime: Runtime) -> list[float]:
    """The sums of each of `numbers`."""
    return [sum(column) for column in zip(*gathered(numbers, runtime), strict=True)]


def earliest_over_ranks(step: int, runtime: Runtime) -> int:
    """The lowest `step`, where -1 stands for none."""
    return min((found for found in gathered(step, runtime) if found >= 0), default=-1)


@torch.no_grad()
def average_over_ranks(tensors: Iterable[Tensor], runtime: Runtime) -> None:
    """Makes each of `tensors` that holds floats its mean over the ranks, in place, in one exchange."""
    if runtime.world_size == 1:
        return
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    flat = torch.cat([tensor.flatten() for tensor in floats])
    dist.all_reduce(flat)
    flat /= runtime.world_size
    for tensor, mean in zip(floats, flat.split([tensor.numel() for tensor in floats]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def data_parallel(model: nn.Module, runtime: Runtime) -> nn.Module:
    """`model`, whose gradients are averaged over the ranks as they arise; itself on one.

    Buffers stay each rank's own: `average_over_ranks` is for them.
    """
    if runtime.world_size == 1:
        return model
    devices = None if runtime.device.type == "cpu" else [runtime.device.index]
    # of weights whose last sides are 1 long, which have no strides to speak of
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # the newest torch has another name for broadcast_buffers
        return DistributedDataParallel(
            model, devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def micro_batches(
    model: nn.Module, images: Tensor, labels: Tensor, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`images` [B,...] and `labels` [B] in `count` parts; the gradients of all but the last stay on the rank."""
    for place, part in enumerate(
        zip(images.tensor_split(count), labels.tensor_split(count), strict=True), 1
    ):
        stays = place < count and isinstance(model, DistributedDataParallel)
        with model.no_sync() if stays else contextlib.nullcontext():
            yield part
