"""How ranks share an epoch's images and its steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ranks import noisy_run, trained
from support.batches import MEAN, STD, batches_of, numbered_images

from cifarnet.augment.loading import EpochOrder
from cifarnet.core.device import init_process
from cifarnet.core.launch import ALONE
from cifarnet.settings import Settings
from data import EvalBatches, TrainBatches

# --- shares ---


@given(images=st.integers(1, 200), share=st.integers(1, 12), world_size=st.integers(1, 9))
def test_shares_of_an_epoch_are_disjoint_complete_and_even(images, share, world_size):
    batch_size = share * world_size
    whole = list(EpochOrder(images, batch_size, 7))
    shares = [
        list(EpochOrder(images, batch_size, 7, rank, world_size)) for rank in range(world_size)
    ]
    for step, (epoch, first, indices) in enumerate(whole):
        parts = [shares[rank][step] for rank in range(world_size)]
        assert (np.concatenate([part for _, _, part in parts]) == indices).all()
        sizes = [len(part) for _, _, part in parts]
        assert max(sizes) - min(sizes) <= (len(indices) < batch_size)
        assert [place for _, place, _ in parts] == [
            first + sum(sizes[:rank]) for rank in range(world_size)
        ]
        assert {e for e, _, _ in parts} == {epoch}


def ranks_of(world_size: int, config: Settings):
    return [
        replace(init_process(config.precision), rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


@given(images=st.integers(1, 60), batch_size=st.integers(1, 25), world_size=st.integers(1, 6))
def test_evaluation_is_shared_out_in_whole_batches(images, batch_size, world_size):
    config, seen = Settings.from_flags(device="cpu"), []
    for runtime in ranks_of(world_size, config):
        batches = EvalBatches(numbered_images(images), batch_size, runtime, MEAN, STD)
        part = [labels.tolist() for _, labels in batches]
        assert batches.rounds - 1 <= len(part) <= batches.rounds
        seen += part
    alone = [
        labels.tolist()
        for _, labels in EvalBatches(
            numbered_images(images), batch_size, init_process(config.precision), MEAN, STD
        )
    ]
    assert seen == alone


def shares_of(images, engine: str, world_size: int) -> list[list[torch.Tensor]]:
    config = Settings.from_flags(device="cpu", num_workers=0, batch_size=16, augment_engine=engine)
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
    runs = [noisy_run(ALONE, epochs=1, dropout=0.0, accumulate=n) for n in (1, 2)]
    for run in runs:
        run.fit()
    counts = [int(run.learner.network.c1.bn.num_batches_tracked) for run in runs]
    assert counts == [3, 5]  # the last batch is one image


def test_no_part_is_empty_on_all_ranks():
    run, sizes = noisy_run(ALONE, epochs=1, dropout=0.0, accumulate=4), []
    run.learner.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    run.fit()
    parts, evaluated = [3] * 8 + [1], [3] * 6 + [2]  # no blank image for an empty part
    assert sizes == parts + evaluated


def test_an_empty_share_leaves_gradients_of_zero_and_the_statistics_as_they_were():
    learner = noisy_run(ALONE, dropout=0.5).learner
    model = learner.network.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    logits = learner.logits(torch.zeros(0, 3, 32, 32), 16)
    assert logits.shape == (0, 3)
    F.cross_entropy(logits, torch.zeros(0, dtype=torch.int64), reduction="sum").backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model.training
    assert model.c1.bn.training
