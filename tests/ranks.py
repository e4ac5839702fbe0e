"""What a rank does in test_torchrun.py: `python -m torch.distributed.run ... ranks.py FILE`."""

# ruff: noqa: E402
import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cifarnet.checkpoints.weights import Weights
from cifarnet.core.device import start
from cifarnet.core.errors import UserError
from cifarnet.core.launch import Ranks
from cifarnet.core.ranks import Group, gathered, run_on_ranks
from cifarnet.core.settings import Settings
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.training.objective import Teacher
from model import build_model
from train import Trainer

PLAIN = {"augment": "none", "dropout": 0.0}
SETTINGS = {
    "plain": PLAIN,
    "taught": {**PLAIN, "image_sizes": "16"},
    "accumulated": {**PLAIN, "accumulate": 3},
    "clipped": {**PLAIN, "max_grad_norm": 0.05},
}


def noise() -> Splits:
    """Of 25 training images in batches of 12, the last leaves a rank without any."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for count in (25, 20):
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        sets.append(ImageSet(pixels, torch.arange(count) % 3, ("a", "b", "c")))
    return Splits("noise", sets[0], None, sets[1], (0.5,) * 3, (0.3,) * 3)


def trainer(ranks: Ranks, frozen: bool, **settings: object) -> Trainer:
    quick = {"device": "cpu", "num_workers": 0, "batch_size": 12, "epochs": 2}
    config = Settings(**{**quick, **settings})
    runtime = start(config, ranks)
    made = Trainer(build_model(config, 3), noise(), config, runtime)
    for module in made.model.modules():
        if frozen and isinstance(module, nn.BatchNorm2d):
            module.eval().train = lambda mode=True, module=module: module
    return made


def trained(ranks: Ranks, name: str) -> dict:
    """Weights and history after two epochs with frozen batch statistics."""
    run = trainer(ranks, True, **SETTINGS[name])
    if name == "taught":
        torch.manual_seed(1)
        states = build_model(run.config, 3).state_dict()
        untrained = Weights(
            states, 1, {}, ["a", "b", "c"], [0.4] * 3, [0.2] * 3, "noise", "", None, "", "none"
        )
        run.teacher = Teacher(untrained, run.splits, run.runtime)
    run.fit(lambda row: None)
    return {"model": run.model.state_dict(), "history": run.history}


def command(group: Group) -> None:
    ranks = group.ranks
    results = {name: trained(ranks, name) for name in SETTINGS}
    whole = trainer(ranks, False, epochs=1)
    whole.fit(lambda row: None)
    content = torch.cat(
        [
            value.double().flatten()
            for value in whole.model.state_dict().values()
            if value.is_floating_point()
        ]
    )
    results["states"] = gathered(content, whole.runtime)
    results["seeds"] = gathered(torch.initial_seed(), whole.runtime)
    if ranks.rank == 0:
        torch.save(results, sys.argv[1])
    group.first_only(lambda: None)
    if ranks.rank == 1:
        raise UserError("a thing that only this rank finds")
    gathered("waiting", whole.runtime)


if __name__ == "__main__":
    sys.exit(run_on_ranks(command))
