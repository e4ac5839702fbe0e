"""Training in fp16 with a gradient scaler, which works on the CPU too."""

import math

import pytest
import torch
from support.small_runs import small_run

from train import Learner

FP16 = {"autocast_to": torch.float16}


def set_gradients(learner: Learner, value: float) -> None:
    for p in learner.network.parameters():
        p.grad = torch.full_like(p, value)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_an_overflow_in_the_first_fp16_step_leaves_no_trace(optimizer):
    learner = small_run(optimizer=optimizer, **FP16).learner
    before = [p.clone() for p in learner.network.parameters()]
    learner.scaler.scale(torch.ones(()))  # sets the scaler up
    scale = learner.scaler.get_scale()
    set_gradients(learner, torch.inf)
    learner.step(math.inf)
    assert all(map(torch.equal, learner.network.parameters(), before))
    assert learner.scaler.get_scale() == scale / 2
    set_gradients(learner, 0.1)
    learner.step(math.inf)
    assert all(p.isfinite().all() for p in learner.network.parameters())
    momenta = [state["momentum_buffer"] for state in learner.optimizer.state.values()]
    assert momenta
    assert all(momentum.isfinite().all() for momentum in momenta)


def test_the_gradient_is_clipped_without_its_scale():
    learner = small_run(**FP16).learner
    learner.scaler.scale(torch.ones(()))
    scale = learner.scaler.get_scale()
    assert scale > 1
    set_gradients(learner, 0.1 * scale)
    count = sum(p.numel() for p in learner.network.parameters())
    assert learner.step(1.0).item() == pytest.approx(0.1 * math.sqrt(count), rel=1e-4)
    norms = [p.grad.norm() for p in learner.network.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(1, rel=1e-4)


def test_a_snapshot_keeps_the_scale():
    first, second = (small_run(**FP16) for _ in range(2))
    first.learner.scaler.scale(torch.ones(()))
    first.learner.scaler.update(8.0)
    second.learner.load(first.snapshot())
    assert second.learner.scaler.get_scale() == 8.0
