"""How ranks, and the parts of a batch, share a step."""

import pytest
import torch
import torch.nn.functional as F
from support.ranks import noisy_run, trained

from cifarnet.core.launch import ALONE


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
