"""Learning rates."""

import math


def learning_rate(
    step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float, schedule: str
) -> float:
    """The learning rate of step `step`, from 0, of `total_steps`.

    It rises linearly from lr/warmup_steps to lr over the warm-up. Then it falls from exactly `lr`
    to exactly `min_lr` on the last step: linearly, or by a cosine (Loshchilov and Hutter 2017,
    arXiv 1608.03983, one period).
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    high = (1 + math.cos(math.pi * share)) / 2 if schedule == "cosine" else 1 - share  # 1 -> 0
    return lr * high + min_lr * (1 - high)
