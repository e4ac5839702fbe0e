import pytest
import torch
import torch.nn.functional as F
from support.small_runs import small_run
from torch import nn

from cifarnet.networks.blocks import DenseConv2d
from cifarnet.networks.cifarnet import CIFARNet
from cifarnet.settings.training import TrainingSettings
from cifarnet.training.optimizers import build_optimizer, orthogonalised


@pytest.mark.parametrize(
    "shape", [(40, 3, 3, 3), (128, 40, 1, 1), (240, 128, 1, 1), (5, 5), (1, 9)]
)
def test_muons_updates_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    update = torch.randn(shape)
    result = orthogonalised(update)
    assert result.shape == update.shape
    u, values, v = torch.linalg.svd(update.flatten(1), full_matrices=False)
    near = torch.linalg.svdvals(result.flatten(1))
    assert near[values / values.norm() > 0.03].min() > 0.65
    assert near.max() < 1.3
    mixed = u.T @ result.flatten(1) @ v.T  # the singular vectors stay
    torch.testing.assert_close(mixed, mixed.diag().diag(), atol=1e-3, rtol=0)
    for factor in (1e-6, 1e6):
        torch.testing.assert_close(orthogonalised(update * factor), result, atol=0.1, rtol=0)


def gradients(model):
    torch.manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return [p.grad.clone() for p in model.parameters()]


def test_muon_turns_the_dense_convolutions_and_leaves_the_rest_to_sgd():
    torch.manual_seed(0)
    model, twin = (CIFARNet().to(memory_format=torch.channels_last) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    config = TrainingSettings(
        optimizer="muon", lr=0.2, muon_lr=0.05, muon_momentum=0.6, weight_decay=1e-3
    )
    muon = build_optimizer(model, config, fused=True)
    sgd = torch.optim.SGD(twin.parameters(), 0.2, 0.9, weight_decay=1e-3, nesterov=True)
    dense = {id(m.weight) for m in model.modules() if isinstance(m, DenseConv2d)}
    assert len(dense) == 6  # c1, three pointwise, two shortcuts
    expected = {id(p): p.detach().clone() for p in model.parameters()}
    average = {id(p): torch.zeros_like(p) for p in model.parameters()}
    for _ in range(3):
        for group in muon.param_groups:
            group["lr"] = 0.2 * group["rate_factor"]
        gradients(twin)
        for p, grad in zip(model.parameters(), gradients(model), strict=True):
            average[id(p)] = 0.6 * average[id(p)] + grad
            turned = (
                expected[id(p)] - 0.05 * orthogonalised(grad + 0.6 * average[id(p)])
                if grad.ndim > 1
                else grad
            )
            expected[id(p)] = (
                F.normalize(turned.flatten(1), dim=1).view_as(p) if grad.ndim > 1 else grad
            )
        muon.step()
        sgd.step()
    for ours, plain in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            ours, expected[id(ours)] if id(ours) in dense else plain, rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_every_weight_is_in_one_group_and_norms_decay_only_if_asked(name, decay_norms):
    model = CIFARNet()
    config = TrainingSettings(optimizer=name, weight_decay=0.01, decay_norms=decay_norms)
    groups = build_optimizer(model, config, fused=True).param_groups
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(
        id(p) for p in model.parameters()
    )
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (
                decay[id(module.weight)] == decay[id(module.bias)] == (0.01 if decay_norms else 0)
            )
    assert decay[id(model.head.weight)] == 0.01
    assert decay[id(model.head.bias)] == (0.01 if decay_norms else 0)


def test_each_group_of_parameters_has_its_rate():
    learner = small_run(optimizer="muon", lr=0.2, muon_lr=0.05).learner
    learner.start_step(0.1)  # half of --lr
    rates = {group["lr"] for group in learner.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.025, 0.1])


def test_momenta_get_memory_of_their_own():
    """A fused step writes as many numbers as the weights have, even into an expanded tensor."""
    run = small_run()
    run.fit_one_epoch()
    snapshot, learner = run.snapshot(), small_run().learner
    for state in snapshot.state.optimizer["state"].values():
        state["momentum_buffer"] = torch.ones(()).expand(state["momentum_buffer"].shape)
    learner.load(snapshot)
    for p in learner.network.parameters():
        momentum = learner.optimizer.state[p]["momentum_buffer"]
        assert (momentum.stride(), momentum.unique().tolist()) == (p.stride(), [1.0])


def test_adamw_decays_apart_from_the_gradient():
    """Loshchilov and Hutter 2019, written a second time."""
    layer = nn.Linear(3, 2, bias=False)
    config = TrainingSettings(optimizer="adamw", lr=0.1, momentum=0.7, weight_decay=0.5)
    adamw = build_optimizer(layer, config, fused=True)
    weight, mean, square = layer.weight.detach().clone(), 0, 0
    for step in (1, 2, 3):
        grad = gradients(layer)[0] * step
        layer.weight.grad = grad.clone()
        adamw.step()
        mean = 0.7 * mean + 0.3 * grad
        square = 0.999 * square + 0.001 * grad**2
        scaled = mean / (1 - 0.7**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * scaled
        torch.testing.assert_close(layer.weight.detach(), weight)


def test_adamw_takes_its_counts_of_steps_over_as_its_own_kind_of_step_wants_them():
    """The snapshot's kind, of another device, may differ: torch converts by the groups given."""
    first = small_run(optimizer="adamw")
    first.fit()
    snapshot = first.snapshot()
    state = snapshot.state
    for group in state.optimizer["param_groups"]:
        group["fused"] = False
    for kept in state.optimizer["state"].values():
        kept["step"] = kept["step"].double()
    optimizer = (second := small_run(optimizer="adamw").learner).optimizer
    second.load(snapshot)
    assert all(group["fused"] for group in optimizer.param_groups)
    assert {kept["step"].dtype for kept in optimizer.state.values()} == {torch.float32}
