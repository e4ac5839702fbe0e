"""Jobs of ranks, and what starts them: processes with torchrun's environment."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from cifarnet.core import ranks
from cifarnet.core.device import Runtime
from cifarnet.core.errors import UserError
from cifarnet.core.ranks import Group, LostContactError, gathered
from cifarnet.core.signals import Signals

FORK = multiprocessing.get_context("forkserver")  # imports once, for all ranks, what DDP uses
FORK.set_forkserver_preload(["torch._dynamo"])
PATIENCE = 2  # seconds, instead of EXCHANGE_TIMEOUT


class Started:
    """Processes 0, 1, ... that run `job(group)`, and the file that they all write to."""

    def __init__(
        self, job: Callable[[Group], None], count: int, output: Path, store: dist.TCPStore,
        attempt: int = 0,
    ) -> None:  # fmt: skip
        self._output, self.processes = output, []
        for rank in range(count):
            environment = {
                "TORCHELASTIC_RUN_ID": "x",
                "TORCHELASTIC_RESTART_COUNT": attempt,
                "TORCHELASTIC_USE_AGENT_STORE": True,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": store.port,
                "RANK": rank,
                "WORLD_SIZE": count,
                "LOCAL_RANK": rank % 2,
                "LOCAL_WORLD_SIZE": 2,
            }
            self.processes.append(FORK.Process(target=_live, args=(job, environment, output)))
            self.processes[-1].start()

    @property
    def output(self) -> str:
        """What all ranks have printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    @property
    def errors(self) -> list[str]:
        """The lines for the user, sorted."""
        return sorted(line for line in self.output.splitlines() if line.startswith("error: "))

    def end(self, *which: int) -> list[int]:
        """Waits for ranks `which`, or all; their exit codes. Fails where one does not end."""
        ending = [self.processes[rank] for rank in which] or self.processes
        for process in ending:
            process.join(30)
            assert process.exitcode is not None, self.output
        return [process.exitcode for process in ending]

    def signal_until_they_end(self) -> None:
        """Sends SIGTERM again and again, as torchrun passes on what all ranks got already."""
        while any(process.is_alive() for process in self.processes):
            for process in self.processes[::-1]:
                process.terminate()
            time.sleep(0.01)

    def wait_for(self, text: str) -> None:
        """Waits until a rank has printed `text`."""
        deadline = time.monotonic() + 30
        while text not in self.output:
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)


def _live(job: Callable[[Group], None], environment: dict, output: Path) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    if job is starts_late and environment["RANK"] == 1:
        time.sleep(1.5 * PATIENCE)  # as long imports would
    ranks.EXCHANGE_TIMEOUT = timedelta(seconds=PATIENCE)
    sys.exit(ranks.run_on_ranks(job))


def _print(text: object) -> None:
    os.write(1, f"{text}\n".encode())  # one line, whole, at once


def _runtime(group: Group) -> Runtime:
    ranks = group.ranks
    return Runtime(torch.device("cpu"), "CPU", None, 1, False, ranks.rank, ranks.world_size)


# --- jobs that end well ---


def takes_turns(group: Group) -> None:
    rank = group.ranks.rank
    group.first_only(lambda: _print(f"first {rank}"))

    def work() -> str:
        time.sleep(0.05)
        _print(f"turn of {rank}")
        return f"work of {rank}"

    assert group.in_turn(work) == f"work of {rank}"
    _print("all are through")
    group.first_only(lambda: _print(f"last {rank}"))


def exchanges(group: Group) -> None:
    runtime, rank = _runtime(group), group.ranks.rank
    floats, whole = torch.full((2, 3), float(rank)), torch.tensor(rank)
    ranks.average_over_ranks([floats, whole, torch.tensor(10.0 * rank)], runtime)
    results = {
        "broadcast": ranks.broadcast_from_rank0(lambda: f"made by {rank}", runtime),
        "gathered": gathered(rank, runtime),
        "sums": ranks.sum_over_ranks([1.0, rank], runtime),
        "earliest": ranks.earliest_over_ranks([-1, 7, 4][rank], runtime),
        "none": ranks.earliest_over_ranks(-1, runtime),
        "means": floats.flatten().tolist(),
        "whole": whole.item() - rank,
    }
    ranks.check_equal("equal", "never", runtime)
    try:
        ranks.check_equal(rank // 2, "they differ", runtime)
    except UserError as problem:
        results["refused"] = str(problem)
    _print(json.dumps(results))


def starts_late(group: Group) -> None:
    gathered(None, _runtime(group))


def works_long(group: Group) -> None:
    group.first_only(lambda: time.sleep(1.5 * PATIENCE))


# --- jobs that fail ---


def finds_an_error(group: Group) -> None:
    if group.ranks.rank == 1:
        raise UserError("no such folder")
    gathered(None, _runtime(group))


def finds_an_error_before_the_others(group: Group) -> None:
    def work() -> None:
        raise UserError("no such folder")

    group.in_turn(work)


def all_find_errors(group: Group) -> None:
    time.sleep(0.5)  # no rank is connecting any more
    raise UserError("--lr 0" if group.ranks.rank < 2 else "a broken disk")


def has_a_bug(group: Group) -> None:
    if group.ranks.rank == 1:
        _ = 1 / 0
    gathered(None, _runtime(group))


def _lose(group: Group, which: int, signum: int) -> None:
    if group.ranks.rank == which:
        os.kill(os.getpid(), signum)


def loses_one_in_an_exchange(group: Group, signum: int) -> None:
    runtime = _runtime(group)
    gathered(None, runtime)
    _lose(group, 1, signum)
    gathered(None, runtime)


def loses_one_in_a_step(group: Group, signum: int) -> None:
    model = ranks.data_parallel(nn.Linear(2, 2), _runtime(group))
    loss = model(torch.zeros(1, 2)).sum()
    _lose(group, 1, signum)
    loss.backward()


def loses_the_first_at_work(group: Group, signum: int) -> None:
    def work() -> None:
        time.sleep(0.5)  # the others wait by now
        _lose(group, 0, signum)

    try:
        group.first_only(work)
    except LostContactError:
        _print(f"a last word of rank {group.ranks.rank}")
        raise


def loses_one_while_the_first_works(group: Group, signum: int) -> None:
    _lose(group, 1, signum)
    group.first_only(lambda: time.sleep(0.2))
    gathered(None, _runtime(group))


# --- jobs that get signals ---


def steps_until_a_signal(group: Group) -> None:
    runtime = _runtime(group)
    with Signals(patient=True) as signals, signals.deferred():
        check = ranks.agreed_check(signals, runtime)
        for step in range(10**6):
            try:
                check()
            except KeyboardInterrupt:
                _print(f"stopped at step {step}")
                raise
            if step == 5:
                _print("at work")


def waits_for_the_first(group: Group) -> None:
    _print("at work")
    try:
        group.in_turn(lambda: time.sleep(60))
    finally:
        time.sleep(0.1)
        _print("tidied up")
