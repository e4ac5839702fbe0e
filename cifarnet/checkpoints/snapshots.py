"""Saving, finding, checking, rotating and loading snapshots, and keeping those of earlier runs."""

import contextlib
import dataclasses
import hashlib
import io
import math
import time
import typing
import warnings
from pathlib import Path
from typing import Any

import torch

from cifarnet.checkpoints.state import BEST, LAST, TrainState, _is_sound, weights_of
from cifarnet.checkpoints.weights import Weights, read_weights
from cifarnet.core.errors import UserError
from cifarnet.core.files import write_atomically

SEAL = b"sha256:"  # and 64 hexadecimal digits: the comment that ends the zip archive which a snapshot is

SEAL_LENGTH = len(SEAL) + 64


def numbered(directory: Path, epoch: int) -> Path:
    """The path of the numbered snapshot of `epoch`."""
    return directory / f"snapshot_epoch_{epoch:04d}.pth"


def pack(state: TrainState) -> bytes:
    """`state` as the content of a snapshot file: a copy, which later training does not change.

    It is what `torch.save` writes, and after it, where zip archives have room for a comment, the checksum of all
    bytes before: `torch.load` alone would not notice a weight that changed on the disk.
    """
    buffer = io.BytesIO()
    torch.save(
        {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}, buffer
    )
    archive = buffer.getvalue()[:-2] + SEAL_LENGTH.to_bytes(
        2, "little"
    )  # the comment's length ends the archive
    return archive + SEAL + hashlib.sha256(archive).hexdigest().encode()


def save(content: bytes, path: Path) -> None:
    """Writes what `pack` made to `path`, whole or not at all. Raises `OSError`."""
    write_atomically(path, lambda file: file.write(content))


def prune(directory: Path, keep: int) -> None:
    """Removes all numbered snapshots in `directory` but the `keep` newest; none for 0. Raises `OSError`."""
    if keep:
        for path in _all_numbered(directory)[:-keep]:
            path.unlink()


def _all_numbered(directory: Path) -> list[Path]:
    """The numbered snapshots in `directory`, the oldest first."""
    found = [
        path
        for path in directory.glob("snapshot_epoch_*.pth")
        if path.stem.rpartition("_")[2].isdecimal()
    ]
    return sorted(found, key=lambda path: int(path.stem.rpartition("_")[2]))


def load(path: Path) -> TrainState:
    """Reads the snapshot `path`, onto the CPU. Raises `UserError` for anything that is none.

    Only tensors and plain values are read: a pickle that would run code is refused.
    """
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise UserError(
            f"the snapshot {path} cannot be read ({problem.strerror}); name a .pth file that a run wrote"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # what torch says of foreign files is said below in one line
            fields = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as problem:  # a damaged or crafted file can raise anything
        if "unsupported global" in str(problem).lower():
            raise UserError(
                f"{path} is refused: it holds code, not only data; use a snapshot that a run wrote"
            ) from None
        raise UserError(f"{path} is truncated, damaged or no snapshot; use another one") from None
    archive, seal = content[:-SEAL_LENGTH], content[-SEAL_LENGTH:]
    if seal.startswith(SEAL) and seal != SEAL + hashlib.sha256(archive).hexdigest().encode():
        raise UserError(
            f"{path} is damaged: its checksum does not fit its content; use another one"
        )
    if isinstance(fields, dict):
        fields.setdefault("averaged", {})  # not in snapshots of before there were such weights
    for field in dataclasses.fields(TrainState):
        kind = typing.get_origin(field.type) or field.type
        if not isinstance(fields, dict) or not isinstance(fields.get(field.name), kind):
            raise UserError(
                f"{path} is no CIFARNet snapshot: it has no {field.name!r} as a run writes it"
            )
    state = TrainState(
        **{field.name: fields[field.name] for field in dataclasses.fields(TrainState)}
    )
    if not _is_sound(state):
        raise UserError(
            f"{path} is no CIFARNet snapshot: its figures do not fit together; use another one"
        )
    return state


def read_trained(name: str) -> Weights:
    """A trained network by what the user calls it: a snapshot (.pth), or weights as `find_weights` finds them.

    Raises `UserError`.
    """
    path = Path(name)
    return weights_of(load(path), path) if path.suffix == ".pth" else read_weights(name)


def find_newest(directory: Path) -> tuple[Path | None, list[str]]:
    """The intact snapshot of the highest epoch in `directory` (None: there is none), and why others were passed over.

    The best one is taken only where all others are broken: it may be of an epoch that had not been kept otherwise.
    """
    passed_over, newest, newest_epoch = [], None, -1
    for path in [directory / LAST, *_all_numbered(directory), directory / BEST]:
        if path.exists() and (path.name != BEST or (passed_over and newest is None)):
            try:
                epoch = load(path).epoch
            except UserError as problem:
                passed_over.append(str(problem))
                continue
            if epoch > newest_epoch:
                newest, newest_epoch = path, epoch
    return newest, passed_over


def move_aside(directory: Path, keep_up_to: int, best_epoch: int = 0) -> Path | None:
    """Moves the snapshots of later epochs than `keep_up_to`, and a best one of another epoch than `best_epoch`, into
    a new dated subfolder, and returns that.

    None where there was nothing to move. An unreadable snapshot is moved too: nothing is overwritten.
    Raises `OSError`.
    """
    later = []
    for path in [directory / LAST, *_all_numbered(directory)]:
        if path.exists() and (keep_up_to == 0 or (_epoch_of(path) or math.inf) > keep_up_to):
            later.append(path)
    best = directory / BEST
    if best.exists() and (keep_up_to == 0 or _epoch_of(best) != best_epoch):
        later.append(best)
    if not later:
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        folder = directory / (f"before_{stamp}" + (f"-{attempt}" if attempt else ""))
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    for path in later:
        path.replace(folder / path.name)
    return folder


def _epoch_of(path: Path) -> int | None:
    try:
        return load(path).epoch
    except UserError:
        return None


def find_best(
    source: Path, directory: Path, epoch: int, history: list[dict[str, Any]]
) -> Path | None:
    """The snapshot of epoch `epoch`, the best of the run that `source` and `history` are of: best_model.pth in
    `directory` or beside `source`, `source` itself, or a numbered one; None where there is none. Another run's differs in
    its losses."""
    losses = [row["train_loss"] for row in history[:epoch]]
    places = (directory, source.parent)
    for path in (
        *(place / BEST for place in places),
        source,
        *(numbered(place, epoch) for place in places),
    ):
        with contextlib.suppress(UserError):
            state = load(path)
            if state.epoch == epoch and [row["train_loss"] for row in state.history] == losses:
                return path
    return None
