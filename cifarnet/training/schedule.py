"""Learning rates."""

import math

SCHEDULES = {  # by --schedule: from the share of the way, in [0, 1], to a factor from 1 to 0
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,  # Loshchilov, Hutter: 1608.03983
    "linear": lambda share: 1 - share,
}


def learning_rate(
    step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float, schedule: str
) -> float:
    """The learning rate of step `step`, from 0, of `total_steps`.

    It rises linearly from lr/warmup_steps to lr over the warm-up. Then it falls from exactly `lr`
    to exactly `min_lr` on the last step, by `schedule`: linearly, or by one period of a cosine.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    high = SCHEDULES[schedule](share)
    return lr * high + min_lr * (1 - high)
