"""A snapshot as a past run."""

from pathlib import Path

from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.comparing.past_runs import PastRun
from cifarnet.comparing.run_files import RunRecord


def run_of_snapshot(path: Path) -> PastRun:
    """The run up to the snapshot `path`. Raises `UserError`."""
    snapshot = read_snapshot(path)
    record = RunRecord(
        settings=snapshot.settings.flags,
        dataset=snapshot.model.origin.dataset,
        parameters=snapshot.model.parameters,
    )
    return PastRun(path.stem, path.resolve(), snapshot.state.history, record)
