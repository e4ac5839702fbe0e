"""Seeds derived from the run's seed, and the state of torch's random generators."""

from typing import Any

import numpy as np
import torch

# The purpose of a draw, as part of its seed: draws for one purpose do not depend on the others.
INITIAL_WEIGHTS, ORDER, AUGMENTATION, DROPOUT, MIXING, CORRUPTION = range(6)


def derived_seed(*parts: int) -> int:
    """Returns a 63-bit seed that depends on all `parts`, on their order and on their number. The
    parts are whole numbers in [0, 2**32), such as the run's seed, the epoch and the purpose."""
    words = (len(parts), *parts)  # SeedSequence gives (1,) and (1, 0) the same state
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def random_state() -> dict[str, Any]:
    """Returns the state of torch's generators, for `set_random_state`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Restores what `random_state` returned; CUDA only if the number of devices is the same."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
