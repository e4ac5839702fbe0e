"""Seeds derived from one, and the state of the generators."""

from typing import Any

import numpy as np
import torch

# What a random draw is for: `derived_seed(seed, epoch, purpose, ...)` keeps one purpose's draws from another's.
INITIAL_WEIGHTS, ORDER, AUGMENTATION, DROPOUT = range(4)


def derived_seed(*parts: int) -> int:
    """A 63-bit seed from whole numbers in [0, 2**32); different parts, their number included, give independent seeds."""
    words = (len(parts), *parts)  # SeedSequence takes (1,) and (1, 0) for the same
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def random_state() -> dict[str, Any]:
    """The state of torch's generators, for `set_random_state`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` read; another number of CUDA devices is left as it is."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
