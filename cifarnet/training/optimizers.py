"""Optimizers: parameter groups, SGD, AdamW and Muon, and how one is restored from a snapshot."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnet.networks.blocks import DenseConv2d
from cifarnet.settings.training import TrainingSettings


def build_optimizer(
    network: nn.Module, settings: TrainingSettings, fused: bool
) -> torch.optim.Optimizer:
    """The optimizer that --optimizer names, for `network`. The learning rate of a group is that of
    the step times the group's "rate_factor". `fused`: the weights are updated in one pass."""
    return OPTIMIZERS[settings.optimizer].build(network, settings, fused)


def _sgd(network: nn.Module, settings: TrainingSettings, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        _groups(list(network.parameters()), settings), **_sgd_options(settings), fused=fused
    )


def _adamw(network: nn.Module, settings: TrainingSettings, fused: bool) -> torch.optim.Optimizer:
    groups = _groups(list(network.parameters()), settings)
    betas, decay = (settings.momentum, 0.999), settings.weight_decay
    return torch.optim.AdamW(groups, settings.lr, betas, weight_decay=decay, fused=fused)


def _muon(network: nn.Module, settings: TrainingSettings, fused: bool) -> torch.optim.Optimizer:
    """Muon for the dense convolutions, SGD for the rest."""
    orthogonal = [m.weight for m in network.modules() if isinstance(m, DenseConv2d)]
    muon_ids = {id(p) for p in orthogonal}
    groups = _groups([p for p in network.parameters() if id(p) not in muon_ids], settings)
    groups.append(
        {
            "params": orthogonal,
            "rate_factor": settings.muon_lr / settings.lr,
            "muon_momentum": settings.muon_momentum,
            "momentum": 0.0,  # SGD's own: the update it gets has one already
            "nesterov": False,
            "weight_decay": 0.0,
        }
    )
    return Muon(groups, **_sgd_options(settings), fused=fused)


def _sgd_options(settings: TrainingSettings) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "momentum": settings.momentum,
        "nesterov": settings.momentum > 0,
        "weight_decay": settings.weight_decay,
    }


def _groups(parameters: Sequence[nn.Parameter], settings: TrainingSettings) -> list[dict[str, Any]]:
    """`parameters` in groups: without --decay_norms, vectors form one without weight decay."""
    decayed = [p for p in parameters if settings.decay_norms or p.ndim > 1]
    vectors = [p for p in parameters if p.ndim == 1 and not settings.decay_norms]
    groups: list[dict[str, Any]] = [{"params": decayed, "rate_factor": 1.0}]
    if vectors:
        groups.append({"params": vectors, "rate_factor": 1.0, "weight_decay": 0.0})
    return groups


class Muon(torch.optim.SGD):
    """SGD, but groups with a "muon_momentum" get orthogonalised updates.

    The update is the gradient's Nesterov momentum, as a matrix [out,rest], with all singular
    values near 1 (Jordan 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv
    2502.16982). After each step these weights are scaled back to rows of unit length: before a
    normalisation only their directions matter, and an update of one size then always means the
    same turn. `torch.optim.Muon` takes matrices only.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        orthogonal = [group for group in self.param_groups if "muon_momentum" in group]
        for group in orthogonal:
            for p in group["params"]:
                if p.grad is not None:
                    state, momentum = self.state[p], group["muon_momentum"]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    average = state["momentum_buffer"].mul_(momentum).add_(p.grad)
                    update = orthogonalised(p.grad.add(average, alpha=momentum))
                    # In p's own memory layout, which the fused step reads fastest.
                    p.grad = torch.empty_like(p).copy_(update)
        loss = super().step(closure)
        for group in orthogonal:
            for p in group["params"]:
                p.copy_(F.normalize(p.flatten(1)).view_as(p))
        return loss


def orthogonalised(update: Tensor) -> Tensor:
    """`update` [out,...] with the singular values of its matrix [out,rest] between 0.7 and 1.2.
    Five steps of the Newton-Schulz iteration of Jordan's Muon: an odd polynomial, steep at 0."""
    matrix = update.flatten(1)
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.T if tall else x).reshape(update.shape)


class OptimizerKind(NamedTuple):
    """How an optimizer is built, and the keys of what it keeps of each weight."""

    build: Callable[[nn.Module, TrainingSettings, bool], torch.optim.Optimizer]
    state_keys: frozenset[str]


OPTIMIZERS = {
    "sgd": OptimizerKind(_sgd, frozenset({"momentum_buffer"})),
    "adamw": OptimizerKind(_adamw, frozenset({"step", "exp_avg", "exp_avg_sq"})),
    "muon": OptimizerKind(_muon, frozenset({"momentum_buffer"})),
}  # by --optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], kind: str) -> None:
    """Loads the state of the state_dict `saved` into an `optimizer` of --optimizer `kind`.

    The settings of `optimizer` do not change. Raises `ValueError`, among others, if `saved`
    belongs to other weights.
    """
    current = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    # Before loading: torch places AdamW's step counts by the settings that it is given.
    groups = [
        group | settings for group, settings in zip(saved["param_groups"], current, strict=True)
    ]
    optimizer.load_state_dict(saved | {"param_groups": groups})
    keys = OPTIMIZERS[kind].state_keys
    for group in optimizer.param_groups:
        states = [(p, optimizer.state[p]) for p in group["params"]]
        same_keys = all(state.keys() == states[0][1].keys() for _, state in states)
        same_form = all(
            (value.shape, value.dtype, value.layout)
            == (() if name == "step" else p.shape, p.dtype, p.layout)
            for p, state in states
            for name, value in state.items()
        )
        if not (same_keys and same_form and states[0][1].keys() in (set(), keys)):
            raise ValueError("its momenta belong to other weights")
        for p, state in states:  # with memory of their own, laid out like the weights
            for name in state.keys() - {"step"}:
                state[name] = torch.empty_like(p, requires_grad=False).copy_(state[name])
