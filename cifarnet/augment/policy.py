"""The augmentation policy: its steps in their order, and random draws for all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cifarnet.augment.affine import Affine
from cifarnet.augment.crop import Crop
from cifarnet.augment.flip import Flip
from cifarnet.augment.hole import Hole
from cifarnet.augment.jitter import Jitter
from cifarnet.augment.published import Published
from cifarnet.augment.step import Step
from cifarnet.core.seeds import derived_seed
from cifarnet.settings.augmentation import AugmentationSettings

# By --augment: its steps, in their order. --auto_augment decides whether Published does anything.
STEPS: dict[str, tuple[type[Step], ...]] = {
    "full": (Crop, Flip, Published, Affine, Hole, Jitter),
    "light": (Crop, Flip, Published),
    "none": (Published,),
}

APPLIED = "applied"  # in a step's draws, bool [B]: whether it changes the image
Draws = dict[str, dict[str, Tensor]]  # by step and name: tensors of B rows, on the CPU


@dataclass(frozen=True)
class Policy:
    """The steps with a probability above 0, in their order."""

    steps: tuple[Step, ...]

    def draw(self, count: int, *key: int) -> Draws:
        """What each step draws for `count` images; `key` (whole numbers in [0, 2**32)) is the seed.
        Each step has a generator of its own, so a new step changes no other's draws."""
        draws = {}
        for step in self.steps:
            generator = torch.Generator().manual_seed(derived_seed(*key, step.number))
            applied = torch.rand(count, generator=generator) < step.probability
            draws[step.name] = {APPLIED: applied} | step.draw(count, generator)
        return draws


def build_policy(settings: AugmentationSettings, size: int) -> Policy:
    """The policy of --augment and --auto_augment for images of `size` pixels."""
    steps = (kind(settings, size) for kind in STEPS[settings.augment])
    return Policy(tuple(step for step in steps if step.probability > 0))


def take(draws: Draws, images: slice | Tensor) -> Draws:
    """The draws of some images, by slice or by index."""
    return {
        step: {name: values[images] for name, values in drawn.items()}
        for step, drawn in draws.items()
    }
