"""Snapshots: everything needed to resume a run, in one file."""

import dataclasses
import io
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifarnet.checkpoints.checks import check_fields, check_finite
from cifarnet.checkpoints.history import Progress, Row
from cifarnet.checkpoints.paths import BEST, check_snapshot, resolve_model_path
from cifarnet.checkpoints.trained import (
    FORMAT,
    UNCALIBRATED,
    Origin,
    TrainedModel,
    fingerprint,
    model_info,
    read_weights,
    trained_model,
)
from cifarnet.core.errors import UserError
from cifarnet.core.files import read_file, write_atomically
from cifarnet.core.seal import PLACEHOLDER, is_sealed, seal
from cifarnet.settings import Settings, settings_from_dict


@dataclass(frozen=True)
class RunState:
    """What a snapshot holds beside the model: the run, with the types that the file has."""

    optimizer: dict[str, Any]
    scheduler: dict[str, int]
    scaler: dict[str, float]
    averaged: dict[str, Tensor]  # of torch's AveragedModel; empty: none are kept
    random_state: dict[str, Tensor | list[Tensor]]
    run_id: str
    history: list[Row]
    comparable_after: int  # see `Progress`
    held_out_sha256: str  # see `CurrentRun`
    world_size: int
    teacher_sha256: str | None

    @property
    def progress(self) -> Progress:
        """How far the run had come, as a copy."""
        return Progress(self.run_id, list(self.history), self.comparable_after)


@dataclass(frozen=True)
class Snapshot:
    """A run after some epochs: its model with the raw weights, and its state."""

    model: TrainedModel
    state: RunState

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return self.model.origin.epoch

    @cached_property
    def settings(self) -> Settings:
        """The settings of the run."""
        return self.model.settings

    def trained(self, weights: str | None = None, best: bool = False) -> TrainedModel:
        """The model to evaluate or to use, with its origin.

        `weights` is "raw" or "ema"; None: the kind that its run evaluates. `best` says that its
        epoch is the best one, as the name of the file may say too. Raises `UserError` if there
        are no such weights.
        """
        evaluated = self.settings.evaluation.evaluate
        kind = weights or evaluated
        tensors = WEIGHTS[kind](self)
        best = best or Path(self.model.source).name == BEST
        former, history = self.model.origin, self.state.history
        origin = describe_origin(
            former.dataset, former.epoch, former.computed_on, former.settings, history, kind, best
        )
        changes = {} if kind == evaluated else UNCALIBRATED
        return dataclasses.replace(
            self.model, weights=tensors, origin=origin, sha256=fingerprint(tensors), **changes
        )


def _averaged(snapshot: Snapshot) -> dict[str, Tensor]:
    if not snapshot.state.averaged:
        raise UserError(
            "the snapshot keeps no averaged weights (--ema_decay was 0); use --evaluate raw"
        )
    prefix = "module."
    return {
        name.removeprefix(prefix): value
        for name, value in snapshot.state.averaged.items()
        if name.startswith(prefix)
    }


# By --evaluate: the tensors of a snapshot's network.
WEIGHTS: dict[str, Callable[[Snapshot], dict[str, Tensor]]] = {
    "raw": lambda snapshot: snapshot.model.weights,
    "ema": _averaged,
}


def describe_origin(
    dataset: str,
    epoch: int,
    computed_on: str,
    flags: dict[str, Any],
    history: list[Row],
    weights: str = "raw",
    best: bool = False,
) -> Origin:
    """The origin of the `weights`, "raw" or "ema", of a run with `flags` and `history`.

    `best` says that `epoch` is the best one.
    """
    settings = settings_from_dict(flags)
    measured = [row.test_accuracy for row in history if row.epoch == epoch]
    accuracy = measured[0] if measured and weights == settings.evaluation.evaluate else None
    measured_at = f"the run's history, epoch {epoch}"
    return Origin(
        dataset=dataset,
        epoch=epoch,
        weights=weights,
        selected_by=_selected_by(settings, history, best),
        accuracy=accuracy,
        accuracy_from="not measured" if accuracy is None else measured_at,
        computed_on=computed_on,
        settings=flags,
    )


def _selected_by(settings: Settings, history: list[Row], best: bool) -> str:
    """How the epoch of a snapshot was chosen, and what the test set had to do with it."""
    evaluated = [row for row in history if (row.val_accuracy, row.test_accuracy) != (None, None)]
    validated = settings.data.val_fraction > 0 or any(
        row.val_accuracy is not None
        for row in evaluated[-1:]  # earlier ones may be of other images
    )
    test_epochs = [row.epoch for row in history if row.epoch and row.test_accuracy is not None]
    at_end_only = test_epochs == [settings.training.epochs]
    when = "at the end only" if at_end_only else "during the run" if test_epochs else "never so far"
    if best and validated:
        return "best by validation accuracy"
    if best:
        return f"best by test accuracy, evaluated {when}"
    epoch, epochs = history[-1].epoch if history else 0, settings.training.epochs
    which = "last epoch" if epoch == epochs else f"epoch {epoch} of {epochs}"
    if validated:
        return f"{which}; chosen without test images"
    return f"{which}; the test set was evaluated {when}"


def pack(snapshot: Snapshot) -> bytes:
    """`snapshot` as the content of a file: a copy, which later training does not change.

    The content is what `torch.save` writes, then a checksum of it, where zip archives have room
    for a comment. `torch.load` alone would not notice a weight that changed on the disk.
    """
    model, state = snapshot.model, snapshot.state
    fields = {"format": FORMAT, **model.fields(), "weights": model.weights, **vars(state)}
    fields["history"] = [dataclasses.asdict(row) for row in state.history]
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    comment = PLACEHOLDER.encode()
    return seal(buffer.getvalue()[:-2] + len(comment).to_bytes(2, "little") + comment)


def write_snapshot(content: bytes, path: Path) -> None:
    """Writes what `pack` made to `path`, whole or not at all. Raises `OSError`."""
    write_atomically(path, lambda file: file.write(content))


class DamagedSnapshotError(UserError):
    """A file that can be read, but holds no intact snapshot of this version."""


class OtherVersionError(UserError):
    """An intact snapshot that this version cannot use: another one may have written it."""


def read_snapshot(path: Path) -> Snapshot:
    """Reads the snapshot `path`, onto the CPU.

    Only tensors and plain values are read: a file that would run code is refused. Raises
    `DamagedSnapshotError`, `OtherVersionError`, and `UserError` where it cannot be read.
    """
    check_snapshot(path)
    content = read_file(path)
    if not is_sealed(content):
        raise DamagedSnapshotError(
            f"{path} is damaged, or not a snapshot: its checksum does not match; use another one"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says it in one line
            fields = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a crafted file can raise anything
        raise DamagedSnapshotError(
            f"{path} is refused: it is not a torch file, or contains code; use another one"
        ) from None
    try:
        return _snapshot(fields, str(path))
    except (UserError, ValueError) as problem:
        raise OtherVersionError(
            f"{path} is not usable ({problem}); another version of this project may have written "
            f"it: use that version, or another snapshot"
        ) from None


def _snapshot(fields: Any, source: str) -> Snapshot:
    """The snapshot of `fields`. Raises `ValueError` or `UserError` for what no run writes."""
    if not isinstance(fields, dict):
        raise ValueError("it holds no fields")
    info = model_info(fields, source)
    fields = {"held_out_sha256": ""} | fields  # files of earlier versions lack it
    kinds = typing.get_type_hints(RunState)
    check_fields(kinds | {"weights": dict[str, Tensor]}, fields)
    history = [Row(**row) for row in fields["history"]]
    state = RunState(**{name: fields[name] for name in kinds} | {"history": history})
    check_finite(state.averaged)
    epochs = [row.epoch for row in state.history]
    epoch = info.origin.epoch
    if not (
        epochs == sorted({*epochs, epoch})  # each once, this one last
        and 0 <= epochs[0] <= epochs[-1] == epoch
        and 0 <= state.comparable_after <= epoch
    ):
        raise ValueError("its history is inconsistent")
    return Snapshot(trained_model(info, fields["weights"]), state)


def load_trained(name: str) -> TrainedModel:
    """The trained model `name`: a result, a snapshot (.pth), a weights file or a hub folder.

    Of a snapshot it takes the weights that the run evaluates. Raises `UserError`.
    """
    path = resolve_model_path(name)
    if path.suffix == ".pth":
        return read_snapshot(path).trained()
    if path.suffix == ".onnx":
        raise UserError(
            f"{path}: only predict.py and evaluate.py read an ONNX file; name the snapshot or the "
            f"weights that it was made from"
        )
    return read_weights(path, name)
