"""The snapshots in a folder: finding them, removing old ones, keeping those of earlier runs."""

import math
from pathlib import Path

from cifarnet.checkpoints.paths import BEST, LAST, all_numbered, epoch_of_numbered, numbered
from cifarnet.checkpoints.snapshots import DamagedSnapshotError, read_snapshot
from cifarnet.core.errors import UserError
from cifarnet.core.files import exists


def prune(directory: Path, keep: int) -> None:
    """Removes the numbered snapshots in `directory` except the `keep` newest; 0: none. Raises
    `OSError`."""
    for path in all_numbered(directory)[:-keep] if keep else ():
        path.unlink()


def find_newest(directory: Path) -> tuple[Path | None, list[str]]:
    """The intact snapshot of the highest epoch in `directory`, and why others were skipped.

    None where there is none. best_model.pth is taken only where no other is intact. Raises
    `UserError` for a snapshot that cannot be read, and for an intact one of another version: only a
    damaged one is skipped.
    """
    skipped, newest, newest_epoch = [], None, 0
    for path in [directory / LAST, *reversed(all_numbered(directory)), directory / BEST]:
        if (path.name == BEST and newest) or not exists(path):
            continue
        if path.name not in (LAST, BEST) and epoch_of_numbered(path) <= newest_epoch:
            continue
        try:
            epoch = read_snapshot(path).epoch
        except DamagedSnapshotError as problem:
            skipped.append(str(problem))
            continue
        if epoch > newest_epoch:
            newest, newest_epoch = path, epoch
    if newest and newest.name == BEST:
        skipped.append(f"{LAST} and numbered snapshots: none is intact in {directory}")
    return newest, skipped


def find_best(source: Path, directory: Path, epoch: int, run_id: str) -> Path | None:
    """The snapshot of `epoch` of the run `run_id`: in `directory`, `source`, or beside it.

    None where there is none. Raises `UserError` if one cannot be read and no other is found.
    """
    unreadable = None
    folders = (directory, source.parent)
    best = [folder / BEST for folder in folders]
    for path in (*best, source, *(numbered(folder, epoch) for folder in folders)):
        try:
            snapshot = read_snapshot(path) if exists(path) else None
        except DamagedSnapshotError:
            continue
        except UserError as problem:  # the next one may be of the same epoch
            unreadable = problem
            continue
        if snapshot and (snapshot.state.run_id, snapshot.epoch) == (run_id, epoch):
            return path
    if unreadable:
        raise unreadable
    return None


def outdated(directory: Path, keep_up_to: int, best_epoch: int = 0) -> list[Path]:
    """The snapshots in `directory` that a run after epoch `keep_up_to` would not write.

    These are last.pth and numbered snapshots newer than `keep_up_to`, a damaged last.pth, and
    best_model.pth if its epoch is not `best_epoch`. With `keep_up_to` 0 it is all of them. Raises
    `UserError` for a snapshot that cannot be read.
    """
    later = [path for path in all_numbered(directory) if epoch_of_numbered(path) > keep_up_to]
    last, best = directory / LAST, directory / BEST
    if exists(last) and (keep_up_to == 0 or (_epoch_of(last) or math.inf) > keep_up_to):
        later.append(last)
    if exists(best) and (keep_up_to == 0 or _epoch_of(best) != best_epoch):
        later.append(best)
    return later


def _epoch_of(path: Path) -> int | None:
    try:
        return read_snapshot(path).epoch
    except DamagedSnapshotError:
        return None
