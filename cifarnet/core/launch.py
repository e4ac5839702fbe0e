"""What torchrun says of the ranks."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of one run; by default it is the only one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among those of its machine
    local_world_size: int = 1
    machine: int = 0
    attempt: int = 0  # how often torchrun has started all ranks anew

    @property
    def launcher(self) -> str:
        """What `main.py` is started with, in words."""
        if self.world_size == 1:
            return "python"
        several = self.local_world_size < self.world_size
        return "torchrun ..." if several else f"torchrun --nproc_per_node={self.world_size}"


ALONE = Ranks()


def launched_ranks() -> Ranks:
    """What torchrun says in the environment; `ALONE` without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "TORCHELASTIC_RESTART_COUNT",
    )
    return Ranks(*(int(os.environ[name]) for name in names))
