from dataclasses import replace

import pytest

from cifarnet.core.device import init_process
from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks, launched_ranks
from cifarnet.core.threads import available_cores
from cifarnet.settings.precision import PrecisionSettings

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "TORCHELASTIC_RESTART_COUNT": "3",
    "RANK": "5",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
}


def test_torchruns_environment(monkeypatch):
    for name in (*TORCHRUN, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert launched_ranks() == ALONE
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    ranks = launched_ranks()
    assert ranks == Ranks(rank=5, world_size=6, local_rank=1, local_world_size=2, attempt=3)
    assert ranks.launcher == "torchrun ..."
    assert replace(ranks, local_world_size=6).launcher == "torchrun --nproc_per_node=6"
    with pytest.raises(UserError, match="without torchrun"):
        init_process(PrecisionSettings(device="cpu"))
    runtime = init_process(PrecisionSettings(device="cpu"), ranks=ranks)
    assert (runtime.rank, runtime.world_size) == (5, 6)
    assert runtime.threads == max(1, available_cores() // 2)
