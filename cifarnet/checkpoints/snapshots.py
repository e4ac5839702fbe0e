"""Snapshot files: packing, writing, checking, finding, and keeping those of earlier runs."""

import contextlib
import dataclasses
import hashlib
import io
import math
import warnings
from pathlib import Path
from typing import Any

import torch

from cifarnet.checkpoints.checks import check_fields, check_finite
from cifarnet.checkpoints.places import (
    BEST,
    LAST,
    all_numbered,
    check_snapshot,
    epoch_of_numbered,
    numbered,
)
from cifarnet.checkpoints.state import Computed, Row, TrainState, weights_of
from cifarnet.checkpoints.weights import Weights, check_network, read_weights
from cifarnet.core.errors import UserError, printable
from cifarnet.core.files import dated_folder, write_atomically

# The comment that ends the zip archive which a snapshot is: this, and 64 hexadecimal digits.
SEAL = b"sha256:"
SEAL_LENGTH = len(SEAL) + 64


def pack(state: TrainState) -> bytes:
    """`state` as the content of a snapshot file: a copy, which later training does not change.

    The content is what `torch.save` writes, then a checksum of it, where zip archives have room
    for a comment. `torch.load` alone would not notice a weight that changed on the disk.
    """
    fields = {spec.name: getattr(state, spec.name) for spec in dataclasses.fields(state)}
    fields["history"] = [dataclasses.asdict(row) for row in state.history]
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    # An archive ends with the length of its comment.
    archive = buffer.getvalue()[:-2] + SEAL_LENGTH.to_bytes(2, "little")
    return archive + _seal(archive)


def _seal(archive: bytes) -> bytes:
    return SEAL + hashlib.sha256(archive).hexdigest().encode()


def save(content: bytes, path: Path) -> None:
    """Writes what `pack` made to `path`, whole or not at all. Raises `OSError`."""
    write_atomically(path, lambda file: file.write(content))


def load(path: Path) -> TrainState:
    """Reads the snapshot `path`, onto the CPU. Raises `UserError` for any other file.

    Only tensors and plain values are read: a file that would run code is refused.
    """
    check_snapshot(path)
    content = path.read_bytes()
    archive, seal = content[:-SEAL_LENGTH], content[-SEAL_LENGTH:]
    if seal != _seal(archive):
        raise UserError(
            f"{path} is damaged, or no snapshot of this version: its checksum does not fit; "
            f"use another one"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says it in one line
            fields = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a crafted file can raise anything
        raise UserError(f"{path} is refused: it holds more than data; use another one") from None
    try:
        return _restored(fields)
    except (UserError, ValueError) as problem:
        raise UserError(
            f"{path} is not usable ({problem}); use a snapshot that a run wrote"
        ) from None


def _restored(fields: Any) -> TrainState:
    """The state made of `fields`. Raises `ValueError` or `UserError` for what no run writes."""
    if not isinstance(fields, dict):
        raise ValueError("it holds no fields")
    check_fields(TrainState, fields)
    check_fields(Computed, fields["config"])
    names = [spec.name for spec in dataclasses.fields(TrainState)]
    state = TrainState(**{name: fields[name] for name in names})
    state.history = [Row(**row) for row in state.history]
    state.dataset = printable(state.dataset)
    check_network(state)
    check_finite(state.model | state.averaged)
    epochs = [row.epoch for row in state.history]
    if not (
        epochs == sorted({*epochs, state.epoch})  # each once, this one last
        and 1 <= epochs[0] <= epochs[-1] == state.epoch
        and 0 <= state.best_epoch <= state.epoch
        and 0 <= state.best_accuracy <= 1
    ):
        raise ValueError("its history does not fit together")
    return state


def read_trained(name: str) -> Weights:
    """A trained network: the snapshot `name` (.pth), or weights as `find_weights` finds them.

    Raises `UserError`.
    """
    path = Path(name)
    return weights_of(load(path), path) if path.suffix == ".pth" else read_weights(name)


def prune(directory: Path, keep: int) -> None:
    """Removes the numbered snapshots in `directory` except the `keep` newest; 0: none.

    Raises `OSError`.
    """
    for path in all_numbered(directory)[:-keep] if keep else ():
        path.unlink()


def find_newest(directory: Path) -> tuple[Path | None, list[str]]:
    """The intact snapshot of the highest epoch in `directory`, and why others were passed over.

    None where there is none. best_model.pth is taken only where no other is intact.
    """
    passed_over, newest, newest_epoch = [], None, 0
    for path in [directory / LAST, *reversed(all_numbered(directory)), directory / BEST]:
        if (path.name == BEST and newest) or not path.exists():
            continue
        if path.name not in (LAST, BEST) and epoch_of_numbered(path) <= newest_epoch:
            continue
        try:
            epoch = load(path).epoch
        except UserError as problem:
            passed_over.append(str(problem))
            continue
        if epoch > newest_epoch:
            newest, newest_epoch = path, epoch
    if newest and newest.name == BEST:
        passed_over.append(f"{LAST} and numbered snapshots: none is intact in {directory}")
    return newest, passed_over


def find_best(source: Path, directory: Path, epoch: int, run_id: str) -> Path | None:
    """The snapshot of `epoch` of the run `run_id`: in `directory`, `source`, or beside it.

    None where there is none.
    """
    places = (directory, source.parent)
    best = [place / BEST for place in places]
    for path in (*best, source, *(numbered(place, epoch) for place in places)):
        with contextlib.suppress(UserError):
            state = load(path)
            if (state.run_id, state.epoch) == (run_id, epoch):
                return path
    return None


def move_aside(directory: Path, keep_up_to: int, best_epoch: int = 0) -> Path | None:
    """Moves snapshots into a new dated subfolder of `directory`.

    Moves last.pth and numbered snapshots newer than `keep_up_to`, and best_model.pth if its epoch
    is not `best_epoch`. With `keep_up_to` 0 it moves all. A last.pth that cannot be read is moved
    too. Returns the subfolder, or None if there was nothing to move. Raises `OSError`.
    """
    later = [path for path in all_numbered(directory) if epoch_of_numbered(path) > keep_up_to]
    last, best = directory / LAST, directory / BEST
    if last.exists() and (keep_up_to == 0 or (_epoch_of(last) or math.inf) > keep_up_to):
        later.append(last)
    if best.exists() and (keep_up_to == 0 or _epoch_of(best) != best_epoch):
        later.append(best)
    if not later:
        return None
    folder = dated_folder(directory)
    for path in later:
        path.replace(folder / path.name)
    return folder


def _epoch_of(path: Path) -> int | None:
    try:
        return load(path).epoch
    except UserError:
        return None
