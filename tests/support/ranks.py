"""What a rank does in test_torchrun.py: `python -m torch.distributed.run ... ranks.py FILE`."""

# ruff: noqa: E402
import dataclasses
import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cifarnet.augment.mixing import Mixing
from cifarnet.core.errors import UserError
from cifarnet.core.launch import Ranks
from cifarnet.core.ranks import Group, gathered, run_on_ranks
from cifarnet.networks.build import build_model
from cifarnet.training.objective import Distillation, Labels, Mixed
from support.small_runs import SmallRun, small_run, small_splits

PLAIN = {"augment": "none", "dropout": 0.0}
SETTINGS = {
    "plain": PLAIN,
    "taught": {**PLAIN, "image_sizes": "16"},
    "accumulated": {**PLAIN, "accumulate": 3},
    "clipped": {**PLAIN, "max_grad_norm": 0.05},
    "attention": {**PLAIN, "attention": "cbam"},
}


def noisy_run(ranks: Ranks, **settings: object) -> SmallRun:
    """A run of 25 images in batches of 12: the last batch leaves a rank without images."""
    splits = small_splits(25, 20, classes="abc")
    return small_run(splits, ranks, **{"batch_size": 12, "augment": "full", **settings})


def trained(ranks: Ranks, name: str) -> dict:
    """Weights and history after two epochs with frozen batch statistics."""
    run = noisy_run(ranks, **SETTINGS[name])
    for module in run.learner.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().train = lambda mode=True, module=module: module
    if name == "taught":
        torch.manual_seed(1)
        teacher, given = build_model(run.settings.network, 3), (run.splits.mean, run.splits.std)
        of_teacher = ((0.4,) * 3, (0.2,) * 3)
        run.objective = Distillation([(teacher, of_teacher)], run.runtime, given)
    rows = run.fit()
    return {
        "model": run.learner.network.state_dict(),
        "history": [dataclasses.asdict(row) for row in rows],
    }


def command(group: Group) -> None:
    ranks = group.ranks
    results = {name: trained(ranks, name) for name in SETTINGS}
    whole = noisy_run(ranks, epochs=1, cutmix=1.0)
    whole.objective = Mixed(Labels(0.1), Mixing(whole.settings.augmentation, 42, 3, ranks.rank))
    whole.fit()
    values = whole.learner.network.state_dict().values()
    floats = torch.cat([v.double().flatten() for v in values if v.is_floating_point()])
    results["states"] = gathered(floats, whole.runtime)
    results["seeds"] = gathered(torch.initial_seed(), whole.runtime)
    if ranks.rank == 0:
        torch.save(results, sys.argv[1])
    group.first_only(lambda: None)
    if ranks.rank == 1:
        raise UserError("a thing that only this rank finds")
    gathered("waiting", whole.runtime)


if __name__ == "__main__":
    sys.exit(run_on_ranks(command))
