"""Runs on noise that take a second, for tests of the loop."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cifarnet.checkpoints.history import Progress, Row
from cifarnet.checkpoints.snapshots import Snapshot
from cifarnet.core.device import Runtime, init_process
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.core.log import RunLog
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.networks.build import build_model
from cifarnet.settings import Settings
from cifarnet.training.objective import Objective, label_objective
from cifarnet.training.plan import Plan
from commands.run import Run
from data import Batches, build_batches
from train import Learner, fit


def small_splits(train: int = 24, test: int = 10, val: int | None = None, classes="ab") -> Splits:
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> ImageSet:
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ImageSet(pixels, torch.arange(count) % len(classes), tuple(classes))

    parts = [images(train), images(val) if val else None, images(test)]
    return Splits("noise", *parts, (0.5,) * 3, (0.3,) * 3)


class RowsOnly:
    """Recorders that keep the rows, and then call `after(row)`."""

    def __init__(self, after: Callable[[Row], object]) -> None:
        self.rows: list[Row] = []
        self.after = after

    def row(self, progress: Progress) -> None:
        self.rows.append(progress.history[-1])
        self.after(progress.history[-1])


@dataclass
class SmallRun:
    """The parts of a run; `fit()` trains it."""

    settings: Settings
    runtime: Runtime
    splits: Splits
    data: Batches
    learner: Learner
    plan: Plan
    objective: Objective

    def fit(
        self,
        after: Callable[[Row], object] = lambda row: None,
        stop: Callable[[], object] = lambda: None,
    ) -> list[Row]:
        """Trains to the end, calls `after` with each row, and returns the rows of this call."""
        recorders = RowsOnly(after)
        fit(self.learner, self.objective, self.data, self.plan, recorders, stop)
        return recorders.rows

    def fit_one_epoch(self) -> None:
        """Trains one epoch; then the run is stopped."""

        def end(row: Row) -> None:
            raise InterruptedError

        try:
            self.fit(end)
        except InterruptedError:
            return
        raise AssertionError("the run had no epoch left")

    def snapshot(self) -> Snapshot:
        """What a snapshot would hold now."""
        parts = (self.splits, self.data, self.objective, self.learner, self.plan)
        run = Run([], self.settings, self.runtime, *parts, None, None, "", {}, RunLog(quiet=True))
        return run.snapshot()


def small_run(
    splits: Splits | None = None,
    ranks: Ranks = ALONE,
    objective: Objective | None = None,
    autocast_to: torch.dtype | None = None,
    **settings: object,
) -> SmallRun:
    quick = {"device": "cpu", "num_workers": 0, "batch_size": 10, "epochs": 2, "augment": "none"}
    quick["label_smoothing"] = 0.0
    chosen, splits = Settings.from_flags(**{**quick, **settings}), splits or small_splits()
    runtime = init_process(chosen.precision, chosen.training.seed, ranks)
    if autocast_to:
        runtime = replace(runtime, amp_dtype=autocast_to)
    data = build_batches(splits, chosen, runtime)
    learner = Learner(build_model(chosen.network, len(splits.train.classes)), chosen, runtime)
    objective = objective or label_objective(
        chosen.training, splits.train.labels, len(splits.train.classes)
    )
    plan = Plan(chosen, len(data.train))
    return SmallRun(chosen, runtime, splits, data, learner, plan, objective)
