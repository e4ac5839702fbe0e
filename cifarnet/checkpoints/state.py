"""What a snapshot holds."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.weights import Weights, fit_a_network
from cifarnet.core.errors import UserError
from cifarnet.core.settings import Settings, settings_from_dict

LAST, BEST = "last.pth", "best_model.pth"
HISTORY_KEYS = {"epoch", "lr"} | {
    f"{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy")
}


@dataclass
class TrainState:
    """All that a run needs to go on after `epoch` finished epochs, and all that an evaluation needs."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    epoch: int
    best_accuracy: float  # of the epochs so far, in [0, 1], by validation images where there are any, else by test
    best_epoch: int  # 0: none yet
    history: list[dict[str, Any]]  # a row an epoch
    config: dict[str, Any]
    random_state: dict[str, Any]
    classes: list[str]
    mean: list[float]
    std: list[float]
    dataset: str
    averaged: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # of torch's AveragedModel; empty: none are kept


def evaluated_weights(state: TrainState, which: str) -> dict[str, Any]:
    """The weights and running statistics, by name, of `state`: "raw", or "ema", the averaged ones.

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


def _is_sound(state: TrainState) -> bool:
    """Whether what the lists of `state` hold can be what a run wrote."""
    return (
        state.epoch >= 1
        and 0 <= state.best_epoch <= state.epoch
        and fit_a_network(state.classes, state.mean, state.std)
        and all(isinstance(row, dict) and row.keys() >= HISTORY_KEYS for row in state.history)
    )


def weights_of(
    state: TrainState, source: Path, which: str | None = None, best: bool = False
) -> Weights:
    """What the snapshot `source`, which holds `state`, says of its "raw" or "ema" weights; None: of those that its run
    evaluates. It is of the `best` epoch, as its name may say too. Raises `UserError` where there are none such."""
    config = settings_from_dict(state.config)
    which = which or config.evaluate
    measured = [row["test_accuracy"] for row in state.history if row["epoch"] == state.epoch]
    accuracy = measured[0] if measured and which == config.evaluate else None
    return Weights(
        model=evaluated_weights(state, which),
        epoch=state.epoch,
        config=state.config | {"evaluate": which},
        classes=state.classes,
        mean=state.mean,
        std=state.std,
        dataset=state.dataset,
        selected_by=_selected_by(config, state.history, best or source.name == BEST),
        accuracy=accuracy,
        accuracy_from="not measured"
        if accuracy is None
        else f"the run's history, epoch {state.epoch}",
        source=str(source),
    )


def _selected_by(config: Settings, history: list[dict[str, Any]], best: bool) -> str:
    """How the epoch of a snapshot was chosen, and what part the test set had in it."""
    validated = config.val_fraction > 0
    looks = [row["epoch"] for row in history if row["test_accuracy"] is not None]
    looked = (
        "at the end only"
        if looks == [config.epochs]
        else "during the run"
        if looks
        else "never so far"
    )
    if best:
        return "best by " + (
            "validation accuracy" if validated else f"test accuracy, evaluated {looked}"
        )
    return (
        "chosen without test images"
        if validated
        else f"not selected; the test set was evaluated {looked}"
    )
