"""Learning rates."""

import math
from collections.abc import Callable

from cifarnet.settings.training import TrainingSettings

# By --schedule: from the share of the way, in [0, 1], to a factor that falls from 1 to 0.
SCHEDULES: dict[str, Callable[[float], float]] = {
    # one period of Loshchilov and Hutter 2017, arXiv 1608.03983
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: 1 - share,
}


def learning_rate(
    step: int, total_steps: int, warmup_steps: int, settings: TrainingSettings
) -> float:
    """The learning rate of step `step`, from 0, of `total_steps`.

    It rises linearly from lr/warmup_steps to lr over the warm-up. Then it falls from exactly --lr
    to exactly --min_lr on the last step, by --schedule.
    """
    lr, min_lr = settings.lr, settings.min_lr
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    high = SCHEDULES[settings.schedule](share)
    return lr * high + min_lr * (1 - high)
