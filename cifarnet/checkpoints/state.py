"""What a snapshot holds: the history, a row an epoch, and all that a run needs to go on."""

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cifarnet.checkpoints.places import BEST
from cifarnet.checkpoints.weights import Weights
from cifarnet.core.errors import UserError
from cifarnet.settings import Settings, settings_from_dict


@dataclass(frozen=True)
class Row:
    """One epoch of the history. Losses are in nats, shares in [0, 1]; None: not measured."""

    epoch: int  # from 1
    lr: float  # of the epoch's last step
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    test_top3: float | None
    test_top5: float | None
    raw_accuracy: float | None  # of both kinds of weights, where averaged ones are kept
    ema_accuracy: float | None
    seconds: float  # of the whole epoch
    train_seconds: float  # without the evaluation
    images_per_second: float  # in training
    data_wait: float  # share of the training time
    grad_norm: float  # before clipping, the mean over steps
    clipped: float  # share of the steps
    skipped_steps: int  # left out by the fp16 scaler


COLUMNS = tuple(column.name for column in dataclasses.fields(Row))


@dataclass
class Progress:
    """How far a run has come."""

    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)  # in all snapshots of the run
    history: list[Row] = field(default_factory=list)
    best_accuracy: float = 0.0  # on validation images where there are any, else on test images
    best_epoch: int = 0  # 0: none yet

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return self.history[-1].epoch if self.history else 0

    def add(self, row: Row) -> None:
        """Closes the epoch of `row`. Of equal accuracies the first one is the best."""
        self.history.append(row)
        accuracy = row.test_accuracy if row.val_accuracy is None else row.val_accuracy
        if accuracy is not None and (self.best_epoch == 0 or accuracy > self.best_accuracy):
            self.best_accuracy, self.best_epoch = accuracy, row.epoch


@dataclass
class TrainState:
    """All that a run needs to go on after `epoch` epochs, and all that an evaluation needs."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, int]
    scaler: dict[str, float]
    averaged: dict[str, Tensor]  # of torch's AveragedModel; empty: none are kept
    random_state: dict[str, Tensor | list[Tensor]]
    run_id: str
    epoch: int
    best_accuracy: float
    best_epoch: int
    history: list[Row]
    config: dict[str, Any]  # the settings, and where the run was computed
    classes: list[str]
    mean: list[float]
    std: list[float]
    dataset: str

    @property
    def progress(self) -> Progress:
        """How far the run had come, as a copy."""
        return Progress(self.run_id, list(self.history), self.best_accuracy, self.best_epoch)


@dataclass
class Computed:
    """What `TrainState.config` says beside the settings: where the run was computed."""

    computed_on: str  # device and precision, in words
    world_size: int
    teacher_sha256: str | None


def evaluated_weights(state: TrainState, which: str) -> dict[str, Tensor]:
    """The weights and running statistics of `state`, by name: "raw", or "ema", the averaged ones.

    Raises `UserError` where there are no averaged ones.
    """
    if which == "raw":
        return state.model
    if not state.averaged:
        raise UserError(
            "the snapshot keeps no averaged weights (--ema_decay was 0); use --evaluate raw"
        )
    prefix = "module."
    return {
        name.removeprefix(prefix): value
        for name, value in state.averaged.items()
        if name.startswith(prefix)
    }


def weights_of(
    state: TrainState, source: Path, which: str | None = None, best: bool = False
) -> Weights:
    """The network in `state`, read from the snapshot `source`, with all that is said of it.

    `which` is "raw" or "ema"; None: the kind that its run evaluates. `best` says that it is of
    the best epoch, as the name of `source` may say too. Raises `UserError` where there are no
    such weights.
    """
    settings = settings_from_dict(state.config)
    which = which or settings.evaluation.evaluate
    measured = [row.test_accuracy for row in state.history if row.epoch == state.epoch]
    accuracy = measured[0] if measured and which == settings.evaluation.evaluate else None
    measured_at = f"the run's history, epoch {state.epoch}"
    return Weights(
        model=evaluated_weights(state, which),
        epoch=state.epoch,
        config=state.config | {"evaluate": which},
        classes=state.classes,
        mean=state.mean,
        std=state.std,
        dataset=state.dataset,
        selected_by=_selected_by(settings, state.history, best or source.name == BEST),
        accuracy=accuracy,
        accuracy_from="not measured" if accuracy is None else measured_at,
        source=str(source),
    )


def _selected_by(settings: Settings, history: list[Row], best: bool) -> str:
    """How the epoch of a snapshot was chosen, and what the test set had to do with it."""
    validated = settings.data.val_fraction > 0 or any(
        row.val_accuracy is not None for row in history
    )
    looks = [row.epoch for row in history if row.test_accuracy is not None]
    at_end_only = looks == [settings.training.epochs]
    looked = "at the end only" if at_end_only else "during the run" if looks else "never so far"
    if best and validated:
        return "best by validation accuracy"
    if best:
        return f"best by test accuracy, evaluated {looked}"
    if validated:
        return "chosen without test images"
    return f"not selected; the test set was evaluated {looked}"


def check_classes(known: Sequence[str], classes: Sequence[str]) -> None:
    """Raises `UserError` unless a network for the classes `known` is one for `classes`."""
    if tuple(known) == tuple(classes):
        return
    pairs = enumerate(zip(known, classes, strict=False))
    differs = next((at for at, (one, other) in pairs if one != other), 0)
    start = max(0, differs - 2)  # the first difference is shown
    named, found = (f"{len(names)} ({_three(names, start)})" for names in (known, classes))
    raise UserError(
        f"class names differ: the network knows {named}; the data set has {found}; "
        f"name the data set that it was trained on"
    )


def _three(names: Sequence[str], start: int) -> str:
    before, after = ["..."] * (start > 0), ["..."] * (len(names) > start + 3)
    return ", ".join([*before, *names[start : start + 3], *after])
