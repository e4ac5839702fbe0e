import json
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from support import started_ranks as jobs
from torch import nn

from cifarnet.core.device import init_process
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.core.ranks import Group, agreed_check, data_parallel, micro_batches, run_on_ranks
from cifarnet.core.signals import Interrupted, Signals
from cifarnet.settings.precision import PrecisionSettings

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
            "none": -1, "means": [1.0] * 6, "whole": 0, "refused": "they differ",
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
