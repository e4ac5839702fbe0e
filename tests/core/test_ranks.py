import functools
import json
import os
import re
import signal
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from support import started_ranks as jobs
from torch import nn

from cifarnet.core.device import init_process
from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.core.ranks import (
    Group,
    LostContactError,
    agreed_check,
    data_parallel,
    micro_batches,
    run_on_ranks,
)
from cifarnet.core.signals import Interrupted, Signals
from cifarnet.settings.precision import PrecisionSettings

LOST = "lost contact with another rank: it ended, hangs, or its machine is gone"


@pytest.fixture
def started(tmp_path):
    """`started(job, count=3, attempt=0)` -> the ranks; the store is one for all attempts."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    all_started = []

    def run(job, count: int = 3, attempt: int = 0) -> jobs.Started:
        all_started.append(jobs.Started(job, count, tmp_path / f"output {attempt}", store, attempt))
        return all_started[-1]

    yield run
    for ranks in all_started:
        for process in ranks.processes:
            process.kill()
            process.join()


# --- order of work, exchanges ---


def test_one_process_does_all_at_once():
    done = []
    group = Group(ALONE)
    group.first_only(lambda: done.append("first"))
    assert group.in_turn(lambda: done.append("turn") or "data") == "data"
    assert done == ["first", "turn"]


def test_data_is_fetched_once_a_machine_and_disks_may_be_shared(started):
    ranks = started(jobs.takes_turns, 4)
    assert ranks.end() == [0] * 4, ranks.output
    lines = ranks.output.splitlines()
    first, turns, through, last = lines[:1], lines[1:5], lines[5:-1], lines[-1]
    assert first == ["first 0"]  # the others wait for it
    assert turns[:2] == ["turn of 0", "turn of 2"]
    assert sorted(turns[2:]) == ["turn of 1", "turn of 3"]
    assert sorted([*through, last]) == ["all are through"] * 4 + ["last 0"]


def test_exchanges(started):
    ranks = started(jobs.exchanges)
    assert ranks.end() == [0] * 3, ranks.output
    results = [json.loads(line) for line in ranks.output.splitlines()]
    assert results == [
        {
            "broadcast": "made by 0", "gathered": [0, 1, 2], "sums": [3.0, 3], "earliest": 4,
            "none": -1, "means": [1.0] * 6, "whole": 0,
        }
    ] * 3  # fmt: skip


def test_gradients_are_exchanged_once_a_step():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        runtime = replace(init_process(PrecisionSettings(device="cpu")), world_size=2)
        model = data_parallel(nn.Linear(2, 2), runtime)
        parts = micro_batches(model, torch.zeros(5, 2), torch.zeros(5), 3)
        exchanges = [(len(images), model.require_backward_grad_sync) for images, _ in parts]
        assert exchanges == [(2, False), (2, False), (1, True)]
    finally:
        dist.destroy_process_group()


# --- ranks that are late, fail, are killed or hang ---


@pytest.mark.parametrize("job", [jobs.starts_late, jobs.works_long])
def test_a_slow_start_and_long_work_are_no_hang(started, job):
    ranks = started(job)
    assert ranks.end() == [0] * 3, ranks.output
    assert ranks.output == ""


@pytest.mark.parametrize(
    ("job", "codes", "expected"),
    [
        (jobs.finds_an_error, [1, 2, 1], "error: rank 1: no such folder"),
        (jobs.finds_an_error_before_the_others, [2, 1, 1], "error: rank 0: no such folder"),
        (jobs.has_a_bug, [1, 1, 1], "error: rank 1: ZeroDivisionError: division by zero"),
    ],
)
def test_one_rank_fails_and_one_line_says_why(started, job, codes, expected):
    ranks = started(job)
    assert ranks.end() == codes
    assert len(ranks.errors) == 1, ranks.output
    assert ranks.errors[0].startswith(expected)
    bug = job is jobs.has_a_bug
    assert ranks.output.count("Traceback") == bug
    assert bug or len(ranks.output.splitlines()) == 1, ranks.output


def test_an_error_that_all_find_is_reported_once_and_others_each(started):
    ranks = started(jobs.all_find_errors)
    assert ranks.end() == [2, 2, 2]
    same, other = sorted(ranks.output.splitlines(), key=lambda line: "disk" in line)
    assert re.fullmatch(r"error: rank [01]: --lr 0", same)
    assert other == "error: rank 2: a broken disk"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(
    "job",
    [
        jobs.loses_one_in_an_exchange,
        jobs.loses_one_in_a_step,
        jobs.loses_one_while_the_first_works,
    ],
)
def test_a_killed_or_hanging_rank_ends_the_others_with_one_line(started, job, how):
    ranks = started(functools.partial(job, signum=how))
    assert ranks.end(0, 2) == [1, 1]
    assert re.fullmatch(f"error: rank [02]: {LOST}\n", ranks.output), ranks.output


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_first_rank_is_killed_or_hangs_while_the_others_wait(started, how):
    ranks = started(functools.partial(jobs.loses_the_first_at_work, signum=how))
    assert ranks.end(1, 2) == [1, 1]
    lines = ranks.output.splitlines()
    (error,) = ranks.errors
    who = re.fullmatch(f"error: (rank [12]): {LOST}", error)[1]
    assert lines.index(error) < lines.index(f"a last word of {who}")  # it may have no time left
    assert sorted(lines) == ["a last word of rank 1", "a last word of rank 2", error]


def test_only_what_torch_raises_about_other_ranks_is_a_lost_contact(capsys):
    group = Group(Ranks(1, 2, 1, 2), dist.HashStore())
    for other, text in ((group, "shapes do not match"), (Group(ALONE), "gloo.pth is no file")):
        with pytest.raises(RuntimeError, match=text), other.contact():
            raise RuntimeError(text)
    with pytest.raises(LostContactError), group.contact():
        dist.HashStore().wait(["0 started"], timedelta(milliseconds=1))
    assert capsys.readouterr().err == f"error: rank 1: {LOST}\n"


def test_errors_are_reported_without_a_store_too(capsys):
    class Gone:
        def add(self, *args):
            raise RuntimeError("Broken pipe")

    Group(Ranks(1, 2, 1, 2), Gone()).report(UserError("--lr 0"))
    assert capsys.readouterr().err == "error: rank 1: --lr 0\n"


def test_restarted_ranks_ignore_what_the_former_ones_left_in_the_store(started):
    for attempt in (0, 1):
        ranks = started(jobs.finds_an_error, attempt=attempt)
        assert ranks.end() == [1, 2, 1]
        assert ranks.output == "error: rank 1: no such folder\n"


# --- signals ---


def test_a_signal_to_one_rank_stops_all_at_the_same_step(started):
    ranks = started(jobs.steps_until_a_signal)
    ranks.wait_for("at work\n" * 3)
    os.kill(ranks.processes[1].pid, signal.SIGTERM)
    assert ranks.end() == [143] * 3, ranks.output
    stops = ranks.output.removeprefix("at work\n" * 3).splitlines()
    assert len(stops) == 3
    assert len(set(stops)) == 1
    assert stops[0].startswith("stopped at step ")


def test_signals_end_ranks_that_wait(started):
    ranks = started(jobs.waits_for_the_first)
    ranks.wait_for("at work\n" * 3)
    ranks.signal_until_they_end()
    assert ranks.end() == [143] * 3, ranks.output
    assert ranks.output == "at work\n" * 3 + "tidied up\n" * 3


def test_on_cuda_ranks_ask_each_other_every_50th_step(monkeypatch):
    asked = []
    monkeypatch.setattr(dist, "all_reduce", lambda received, how: asked.append(received.add_(15)))
    for device, steps in (("cpu", 1), ("cuda", 50)):
        runtime = replace(
            init_process(PrecisionSettings(device="cpu")), world_size=2, device=torch.device(device)
        )
        check = agreed_check(Signals(), runtime)
        for _ in range(steps - 1):
            check()
        with pytest.raises(Interrupted, match="SIGTERM"):
            check()
    assert len(asked) == 2


def test_torchrun_out_of_reach_is_one_line(monkeypatch, capsys):
    def refuse(*arguments, **settings):
        raise dist.DistNetworkError("The client socket has failed to connect")

    monkeypatch.setattr(dist, "rendezvous", refuse)
    monkeypatch.setattr("cifarnet.core.ranks.launched_ranks", lambda: Ranks(1, 2, 1, 2))
    assert run_on_ranks(lambda group: None) == 1
    assert capsys.readouterr().err == "error: torchrun cannot be reached; check MASTER_ADDR\n"
