"""Learning rates."""

import math


def learning_rate(
    step: int,
    total_steps: int,
    warmup_steps: int,
    lr: float,
    min_lr: float,
    schedule: str = "cosine",
) -> float:
    """The learning rate of step `step`, counted from 0.

    Linear from lr/warmup_steps to lr over the warm-up, then falling from exactly `lr` on its first step to exactly
    `min_lr` on the last of `total_steps`: by a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, one period)
    or linearly.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    high = (1 + math.cos(math.pi * share)) / 2 if schedule == "cosine" else 1 - share  # 1 -> 0
    return lr * high + min_lr * (1 - high)
