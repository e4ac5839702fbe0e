import pytest
import torch.distributed as dist
from support import started_ranks as jobs


@pytest.fixture
def started(tmp_path):
    """`started(job, count=3, attempt=0)` -> the ranks; the store is one for all attempts."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    all_started = []

    def run(job, count: int = 3, attempt: int = 0) -> jobs.Started:
        all_started.append(jobs.Started(job, count, tmp_path / f"output {attempt}", store, attempt))
        return all_started[-1]

    yield run
    for ranks in all_started:
        for process in ranks.processes:
            process.kill()
            process.join()
