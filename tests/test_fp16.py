"""Training in fp16 with a gradient scaler, which works on the CPU too."""

import math

import pytest
import torch
from support.small_runs import small_run

FP16 = {"autocast_to": torch.float16}


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_an_overflow_in_the_first_fp16_step_leaves_no_trace(optimizer):
    learner = small_run(optimizer=optimizer, **FP16).learner
    for gradient in (torch.inf, 0.1):
        for p in learner.network.parameters():
            p.grad = torch.full_like(p, gradient)
        learner.scaler.scale(torch.ones(()))  # sets the scaler up
        learner.step(math.inf)
        assert all(p.isfinite().all() for p in learner.network.parameters())
    momenta = [state["momentum_buffer"] for state in learner.optimizer.state.values()]
    assert momenta
    assert all(momentum.isfinite().all() for momentum in momenta)


def test_the_norm_is_that_of_the_gradient_without_its_scale():
    learner = small_run(**FP16).learner
    learner.scaler.scale(torch.ones(()))
    scale, count = learner.scaler.get_scale(), 0
    assert scale > 1
    for p in learner.network.parameters():
        p.grad = torch.full_like(p, 0.1 * scale)
        count += p.numel()
    assert learner.step(math.inf).item() == pytest.approx(0.1 * math.sqrt(count), rel=1e-4)


def test_a_snapshot_keeps_the_scale():
    first, second = (small_run(**FP16) for _ in range(2))
    first.learner.scaler.scale(torch.ones(()))
    first.learner.scaler.update(8.0)
    second.learner.load(first.snapshot())
    assert second.learner.scaler.get_scale() == 8.0
