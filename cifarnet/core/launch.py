"""The place of this process among the ranks that torchrun started."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, and the number of ranks. By default it is the only one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on its machine
    local_world_size: int = 1
    attempt: int = 0  # times torchrun has restarted all ranks

    @property
    def launcher(self) -> str:
        """The words before `main.py` in the command line."""
        if self.world_size == 1:
            return "python"
        several_machines = self.local_world_size < self.world_size
        return (
            "torchrun ..." if several_machines else f"torchrun --nproc_per_node={self.world_size}"
        )


ALONE = Ranks()


def launched_ranks() -> Ranks:
    """Reads torchrun's environment variables; `ALONE` without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    return Ranks(*(int(os.environ[name]) for name in names))
