"""What a step does to the weights: learning rates, parameter groups, SGD, AdamW and Muon."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnet.core.settings import Settings
from cifarnet.networks.fast import DenseConv2d


def build_optimizer(model: nn.Module, config: Settings, fused: bool) -> torch.optim.Optimizer:
    """The optimizer that `config` asks for; each group's learning rate is `config.lr` times its "rate_factor"."""
    orthogonal = []
    if config.optimizer == "muon":
        orthogonal = [
            module.weight for module in model.modules() if isinstance(module, DenseConv2d)
        ]
    taken = {id(p) for p in orthogonal}
    rest = [p for p in model.parameters() if id(p) not in taken]
    decayed = [p for p in rest if config.decay_norms or p.ndim > 1]
    spared = [p for p in rest if p.ndim == 1 and not config.decay_norms]
    groups: list[dict[str, Any]] = [{"params": decayed, "rate_factor": 1.0}]
    if spared:
        groups.append({"params": spared, "rate_factor": 1.0, "weight_decay": 0.0})
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(
            groups, config.lr, betas, weight_decay=config.weight_decay, fused=fused
        )
    sgd: dict[str, Any] = {
        "nesterov": config.momentum > 0,
        "weight_decay": config.weight_decay,
        "fused": fused,
    }
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, config.momentum, **sgd)
    factor = config.muon_lr / config.lr
    plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    groups.append(
        {
            "params": orthogonal,
            "rate_factor": factor,
            "muon_momentum": config.muon_momentum,
            **plain,
        }
    )
    return Muon(groups, config.lr, config.momentum, **sgd)


class Muon(torch.optim.SGD):
    """SGD, but groups with a "muon_momentum" get orthogonalised updates (Jordan 2024, kellerjordan.github.io/posts/muon;
    Liu et al. 2025, arXiv 2502.16982): the gradient's Nesterov momentum, as a matrix [out,rest], with all its singular
    values near 1.

    Their weights are put back to rows of unit length after each step: before a normalisation only their directions
    matter, and the update's size then always means the same turn. torch.optim.Muon takes matrices only.
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
                    p.grad = torch.empty_like(p).copy_(
                        update
                    )  # in p's own layout: the fused step reads memory in order
        loss = super().step(closure)
        for group in orthogonal:
            for p in group["params"]:
                p.copy_(F.normalize(p.flatten(1)).view_as(p))
        return loss


def orthogonalised(update: Tensor) -> Tensor:
    """`update` [out,...] with the singular values of its matrix [out,rest] brought to between 0.7 and 1.2.

    Five steps of the Newton-Schulz iteration of Jordan's Muon: an odd polynomial whose slope at 0 is steep.
    """
    matrix = update.flatten(1)
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.T if tall else x).reshape(update.shape)
