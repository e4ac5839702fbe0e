"""One run: what was asked for, and its parts, wired together."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.folder import find_best
from cifarnet.checkpoints.resume import ResumePlan
from cifarnet.checkpoints.snapshots import RunState, Snapshot, describe_origin
from cifarnet.checkpoints.trained import TrainedModel, fingerprint
from cifarnet.core.device import Runtime
from cifarnet.core.log import RunLog
from cifarnet.core.ranks import broadcast_from_rank0
from cifarnet.images.imageset import Splits
from cifarnet.settings import Settings
from cifarnet.training.objective import Objective
from cifarnet.training.plan import Plan
from data import Batches
from train import Learner


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    command: list[str]  # as typed, without the launcher
    flags: dict[str, Any]  # those that the user set
    presets: dict[str, Any]  # flags that the command sets, below those of the user
    settings: Settings = field(default_factory=Settings)  # from both; `run_training` sets it


@dataclass(frozen=True)
class Run:
    """The parts of one run, wired together."""

    command: list[str]
    settings: Settings
    runtime: Runtime
    splits: Splits
    data: Batches
    objective: Objective
    learner: Learner
    plan: Plan
    resume: ResumePlan | None  # how the run continues; None: it is new
    teacher_sha256: str | None
    held_out_sha256: str  # see `CurrentRun`
    folders: dict[str, Path]  # by flag: log_dir, snapshot_dir, plot_dir
    log: RunLog

    @property
    def trains(self) -> bool:
        """Whether an epoch is left to train."""
        return not (self.resume and self.resume.finished)

    def snapshot(self) -> Snapshot:
        """The complete state after the epochs finished so far."""
        settings, splits, done = self.settings, self.splits, self.learner.progress.epoch
        plan = self.plan
        state = RunState(
            **self.learner.state(),
            scheduler={"step": plan.first_step(done + 1), "total_steps": plan.total_steps},
            world_size=self.runtime.world_size,
            teacher_sha256=self.teacher_sha256,
            held_out_sha256=self.held_out_sha256,
        )
        weights = self.learner.network.state_dict()
        model = TrainedModel(
            network=settings.network,
            image_size=settings.data.image_size,
            classes=splits.train.classes,
            mean=tuple(splits.mean),
            std=tuple(splits.std),
            origin=describe_origin(
                splits.name, done, self.runtime.computed_on, settings.flags, state.history
            ),
            sha256=fingerprint(weights),
            source="",
            weights=weights,
        )
        return Snapshot(model, state)


def best_snapshot(learner: Learner, source: Path, directory: Path) -> Path | None:
    """The snapshot of the best epoch so far, in `directory` or beside `source`; None: none."""
    progress = learner.progress
    find = partial(find_best, source, directory, progress.best_epoch, progress.run_id)
    return broadcast_from_rank0(find, learner.runtime)
