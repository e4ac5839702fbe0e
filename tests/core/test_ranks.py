import contextlib
import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ranks import trained, trainer
from test_data import MEAN, STD, batches_of, numbered_images
from torch import nn

from cifarnet.core.device import _pick_device, available_cores, start
from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks, launched_ranks
from cifarnet.core.ranks import (
    Group,
    LostContactError,
    agreed_check,
    data_parallel,
    micro_batches,
    run_on_ranks,
)
from cifarnet.core.settings import Settings
from cifarnet.core.signals import Interrupted, Signals
from data import EvalBatches, TrainBatches, _EpochOrder
from model import build_model
from train import _logits

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "2", "TORCHELASTIC_RESTART_COUNT": "3",
}  # fmt: skip


# --- shares ---


@given(images=st.integers(1, 200), share=st.integers(1, 12), world_size=st.integers(1, 9))
def test_shares_of_an_epoch_are_disjoint_complete_and_even(images, share, world_size):
    batch_size = share * world_size
    whole = list(_EpochOrder(images, batch_size, 7))
    shares = [
        list(_EpochOrder(images, batch_size, 7, rank, world_size)) for rank in range(world_size)
    ]
    for step, (epoch, first, indices) in enumerate(whole):
        parts = [shares[rank][step] for rank in range(world_size)]
        assert torch.equal(torch.cat([part for _, _, part in parts]), indices)
        sizes = [len(part) for _, _, part in parts]
        assert max(sizes) - min(sizes) <= (len(indices) < batch_size)
        assert [place for _, place, _ in parts] == [
            first + sum(sizes[:rank]) for rank in range(world_size)
        ]
        assert {e for e, _, _ in parts} == {epoch}


def ranks_of(world_size: int, config: Settings):
    return [replace(start(config), rank=rank, world_size=world_size) for rank in range(world_size)]


@given(images=st.integers(1, 60), batch_size=st.integers(1, 25), world_size=st.integers(1, 6))
def test_evaluation_is_shared_out_in_whole_batches(images, batch_size, world_size):
    config, seen = Settings(device="cpu"), []
    for runtime in ranks_of(world_size, config):
        batches = EvalBatches(numbered_images(images), batch_size, runtime, MEAN, STD)
        part = [labels.tolist() for _, labels in batches]
        assert batches.rounds - 1 <= len(part) <= batches.rounds
        seen += part
    alone = [
        labels.tolist()
        for _, labels in EvalBatches(numbered_images(images), batch_size, start(config), MEAN, STD)
    ]
    assert seen == alone


def shares_of(images, engine: str, world_size: int) -> list[list[torch.Tensor]]:
    config = Settings(device="cpu", num_workers=0, batch_size=16, augment_engine=engine)
    trains = [
        TrainBatches(images, config, runtime, MEAN, STD) for runtime in ranks_of(world_size, config)
    ]
    assert {len(train) for train in trains} == {-(-len(images) // 16)}
    assert [trains[0].size(step) for step in range(len(trains[0]))] == [16, 16, 1]
    return [[x for x, _ in train.epoch(2)] for train in trains]


@pytest.mark.parametrize("engine", ["albumentations", "batched"])
def test_no_rank_repeats_anothers_draws(engine):
    same = numbered_images(33)
    same = replace(same, images=(same.images[:1] + 200).expand(33, -1, -1, -1).contiguous())
    first, second = (torch.cat(part) for part in shares_of(same, engine, 2))
    assert (len(first), len(second)) == (16, 17)
    assert not torch.equal(first, second[:16])


def test_the_batched_engine_shows_ranks_what_it_shows_one_process():
    images = numbered_images(33)
    whole = [x for x, _ in batches_of(images, augment_engine="batched").epoch(2)]
    for steps, expected in zip(
        zip(*shares_of(images, "batched", 4), strict=True), whole, strict=True
    ):
        torch.testing.assert_close(torch.cat(steps), expected)


# --- steps ---


def test_a_batch_in_parts_is_a_step_like_the_whole_one():
    whole, parts = trained(ALONE, "plain"), trained(ALONE, "accumulated")
    for key, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][key], value, rtol=1e-4, atol=1e-5)
    assert parts["history"][0]["train_loss"] == pytest.approx(
        whole["history"][0]["train_loss"], rel=1e-5
    )


def test_normalisation_takes_the_statistics_of_each_part_alone():
    whole, parts = (
        trainer(ALONE, False, epochs=1, augment="none", dropout=0.0, accumulate=n) for n in (1, 2)
    )
    for run in (whole, parts):
        run.fit(lambda row: None)
    assert [int(run.model.c1.bn.num_batches_tracked) for run in (whole, parts)] == [
        3,
        5,
    ]  # the last batch is one image


def test_gradients_are_exchanged_once_a_step():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = data_parallel(nn.Linear(2, 2), replace(start(Settings(device="cpu")), world_size=2))
        parts = micro_batches(model, torch.zeros(5, 2), torch.zeros(5), 3)
        assert [(len(x), model.require_backward_grad_sync) for x, _ in parts] == [
            (2, False),
            (2, False),
            (1, True),
        ]
    finally:
        dist.destroy_process_group()


def test_an_empty_share_leaves_gradients_of_zero_and_the_statistics_as_they_were():
    model = build_model(Settings(dropout=0.5), 3).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    logits = _logits(model, torch.zeros(0, 3, 32, 32))
    assert logits.shape == (0, 3)
    F.cross_entropy(logits, torch.zeros(0, dtype=torch.int64), reduction="sum").backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model.training
    assert model.c1.bn.training


# --- in turn ---


def in_threads(works) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_data_is_fetched_once_a_machine_and_disks_may_be_shared():
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]  # machine, local rank
    store, order = dist.HashStore(), []
    groups = [
        Group(Ranks(rank, 4, local_rank, 2, machine), store)
        for rank, (machine, local_rank) in enumerate(places)
    ]

    def load(rank):
        assert groups[rank].in_turn(lambda: order.append(rank) or "data") == "data"
        assert len(order) == 4  # all are through

    in_threads([lambda rank=rank: load(rank) for rank in (3, 2, 1, 0)])
    assert order[0] == 0
    assert order.index(2) < order.index(3)


def test_the_first_rank_acts_and_the_others_wait():
    store, order = dist.HashStore(), []
    groups = [Group(Ranks(rank, 3, rank, 3), store) for rank in range(3)]

    def live(rank):
        for turn in (1, 2):
            groups[rank].first_only(
                lambda turn=turn: order.append(f"rank {rank} acts in turn {turn}")
            )
            order.append(turn)

    in_threads([lambda rank=rank: live(rank) for rank in (2, 1, 0)])
    assert [e for e in order if isinstance(e, str)] == [
        "rank 0 acts in turn 1",
        "rank 0 acts in turn 2",
    ]
    assert order[0] == "rank 0 acts in turn 1"
    assert order.index(2) > order.index("rank 0 acts in turn 2")


def test_who_works_may_take_its_time_and_who_is_gone_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("cifarnet.core.ranks.PATIENCE", timedelta(seconds=0.2))
    monkeypatch.setattr(Group._wait, "__defaults__", (timedelta(seconds=0.2),))
    store = dist.HashStore()
    groups = [Group(Ranks(rank, 2, rank, 2), store) for rank in (0, 1)]
    done = []
    in_threads(
        [
            lambda: groups[0].first_only(lambda: time.sleep(0.8)),
            lambda: done.append(groups[1].first_only(lambda: pytest.fail("worked"))),
        ]
    )
    assert done == [None]
    with pytest.raises(LostContactError):
        groups[1].first_only(lambda: pytest.fail("worked"))


def test_who_waits_is_told_that_another_failed(capsys):
    store = dist.HashStore()
    first, second = (Group(Ranks(rank, 2, rank, 2), store) for rank in (0, 1))
    first.tell(UserError("no such folder"))
    with pytest.raises(LostContactError) as caught:
        second.in_turn(lambda: pytest.fail("went on"))
    second.tell(caught.value)
    assert capsys.readouterr().err == "error: rank 0: no such folder\n"


def test_an_error_that_all_find_is_told_once_and_others_each(capsys):
    store = dist.HashStore()
    groups = [Group(Ranks(rank, 3, rank, 3), store) for rank in range(3)]
    for group in (groups[1], groups[0], groups[2]):
        group.tell(UserError("--lr 0"))
    groups[2].tell(UserError("a broken disk"))
    groups[0].tell(LostContactError("gone"))
    assert capsys.readouterr().err == "error: rank 1: --lr 0\nerror: rank 2: a broken disk\n"
    Group(ALONE).tell(UserError("--lr 0"))
    assert capsys.readouterr().err == "error: --lr 0\n"


def test_an_error_is_told_before_the_others_lose_contact(monkeypatch):
    order = []
    monkeypatch.setattr(
        dist, "rendezvous", lambda *args, **settings: iter([(dist.HashStore(), 0, 2)])
    )
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **settings: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: order.append("contact lost"))
    monkeypatch.setattr(Group, "_wait", lambda *args: None)
    monkeypatch.setattr(Group, "tell", lambda self, problem: order.append(str(problem)))
    with pytest.raises(UserError), Group(Ranks(0, 2, 0, 2)).joined():
        raise UserError("--init: no such file")
    assert order == ["--init: no such file", "contact lost"]


def test_a_bug_is_told_with_its_rank_too(capsys, monkeypatch):
    monkeypatch.setattr("cifarnet.core.ranks.launched_ranks", lambda: Ranks(1, 2, 1, 2))
    monkeypatch.setattr(Group, "joined", lambda self: contextlib.nullcontext())
    with pytest.raises(ZeroDivisionError):
        run_on_ranks(lambda group: 1 / 0)
    assert capsys.readouterr().err == "error: rank 1: ZeroDivisionError: division by zero\n"
    assert run_on_ranks(lambda group: torch.empty(2**50)) == 1  # no bug
    assert capsys.readouterr().err.startswith("error: rank 1: out of memory; ")


def test_errors_of_torch_become_a_lost_contact_where_there_are_others(capsys):
    with pytest.raises(LostContactError), Group(Ranks(1, 2, 1, 2), dist.HashStore()).contact():
        raise RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer"
        )
    assert capsys.readouterr().err.startswith("error: rank 1: lost contact with another rank")
    for ranks, text in ((ALONE, "NCCL error"), (Ranks(1, 2, 1, 2), "shapes do not match")):
        with pytest.raises(RuntimeError, match=text), Group(ranks, dist.HashStore()).contact():
            raise RuntimeError(text)


def test_on_cuda_ranks_ask_each_other_every_50th_step(monkeypatch):
    asked = []
    monkeypatch.setattr(dist, "all_reduce", lambda received, how: asked.append(received.add_(15)))
    for device, steps in (("cpu", 1), ("cuda", 50)):
        runtime = replace(start(Settings(device="cpu")), world_size=2, device=torch.device(device))
        check = agreed_check(Signals(), runtime)
        for _ in range(steps - 1):
            check()
        with pytest.raises(Interrupted, match="SIGTERM"):
            check()
    assert len(asked) == 2


# --- the place of a process ---


def test_torchruns_environment(monkeypatch):
    assert launched_ranks() == ALONE
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    ranks = launched_ranks()
    assert ranks == Ranks(
        rank=5, world_size=6, local_rank=1, local_world_size=2, machine=2, attempt=3
    )
    assert ranks.launcher == "torchrun ..."
    assert replace(ranks, local_world_size=6).launcher == "torchrun --nproc_per_node=6"
    with pytest.raises(UserError, match="without torchrun"):
        start(Settings(device="cpu"))
    runtime = start(Settings(device="cpu", batch_size=12), ranks)
    assert (runtime.rank, runtime.world_size) == (5, 6)
    assert runtime.threads == max(1, available_cores() // 2)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    three = Ranks(0, 3, 0, 3)
    start(Settings(device="cpu", batch_size=24, accumulate=4), three)
    with pytest.raises(
        UserError, match=r"batch_size 32 cannot be divided evenly among 3 .* of 3, such as 30"
    ):
        start(Settings(device="cpu", batch_size=32), three)
    with pytest.raises(
        UserError, match=r"batch_size 10 .* 1 processes and --accumulate 4; .* of 4, such as 8"
    ):
        start(Settings(device="cpu", batch_size=10, accumulate=4))
    with pytest.raises(UserError, match=r"batch_size 2 .* such as 3"):
        start(Settings(device="cpu", batch_size=2), three)


def test_each_rank_has_a_cuda_device_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert _pick_device("auto", Ranks(1, 2, 1, 2)) == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    assert _pick_device("auto", ALONE) == torch.device("cuda")
    with pytest.raises(UserError, match=r"3 processes on a machine with 2 CUDA devices: give .*=2"):
        _pick_device("cuda", Ranks(2, 3, 2, 3))


def test_sync_bn_is_refused_on_the_cpu():
    with pytest.raises(UserError, match="--sync_bn needs CUDA"):
        start(Settings(device="cpu", sync_bn=True))
