"""The history of a run: a row an epoch, and which epoch was the best."""

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One epoch of the history. Losses are in nats, shares in [0, 1]; None: not measured.

    Epoch 0 is the evaluation of the weights that --init names, before any training.
    """

    epoch: int
    lr: float | None = None  # of the epoch's last step
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    test_top3: float | None = None
    test_top5: float | None = None
    raw_accuracy: float | None = None  # of both kinds of weights, where averaged ones are kept
    ema_accuracy: float | None = None
    seconds: float = 0.0  # of the whole epoch
    train_seconds: float = 0.0  # without the evaluation
    images_per_second: float | None = None  # in training
    data_wait: float | None = None  # share of the training time
    grad_norm: float | None = None  # before clipping, the mean over steps
    clipped: float | None = None  # share of the steps
    skipped_steps: int = 0  # left out by the fp16 scaler

    @property
    def held_out_accuracy(self) -> float | None:
        """On validation images where there are any, else on test images; None: not measured."""
        return self.test_accuracy if self.val_accuracy is None else self.val_accuracy


COLUMNS = tuple(column.name for column in dataclasses.fields(Row))


def best_row(history: Sequence[Row]) -> Row | None:
    """The row of the highest held-out accuracy, of equal ones the first; None: none is measured.

    If any row has a validation accuracy, only such rows count. Epoch 0 does not.
    """
    history = [row for row in history if row.epoch]
    validated = [row for row in history if row.val_accuracy is not None]
    measured = validated or [row for row in history if row.test_accuracy is not None]
    return max(measured, key=lambda row: row.held_out_accuracy, default=None)


def start_and_end(history: Sequence[Row]) -> tuple[float, float] | None:
    """The held-out accuracies of epoch 0 and of the last epoch, if both are of the same images."""
    if len(history) < 2 or history[0].epoch:
        return None
    for column in ("val_accuracy", "test_accuracy"):
        start, end = (getattr(history[at], column) for at in (0, -1))
        if start is not None and end is not None:
            return start, end
    return None


@dataclass
class Progress:
    """How far a run has come."""

    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)  # in all snapshots of the run
    history: list[Row] = field(default_factory=list)
    comparable_after: int = 0  # the best epoch is one after this

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return self.history[-1].epoch if self.history else 0

    @property
    def best(self) -> Row | None:
        """The best row among those that are comparable; None: there is none yet."""
        return best_row([row for row in self.history if row.epoch > self.comparable_after])

    @property
    def best_epoch(self) -> int:
        """The epoch of the best row; 0: there is none yet."""
        return self.best.epoch if self.best else 0
