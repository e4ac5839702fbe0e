"""How a run goes on from a snapshot: which one, whether it fits, and what becomes of those that lie there."""

import dataclasses
from pathlib import Path

from cifarnet.checkpoints.snapshots import BEST, LAST, find_best, find_newest, move_aside, save
from cifarnet.checkpoints.state import TrainState
from cifarnet.core.device import Runtime
from cifarnet.core.errors import UserError
from cifarnet.core.log import RunLog
from cifarnet.core.ranks import from_first_rank
from cifarnet.core.settings import Settings, changed_settings, settings_from_dict
from train import Trainer, keeps_momenta, may_have_seen


def find_source(config: Settings, log: RunLog, snapshot_dir: Path, runtime: Runtime) -> Path | None:
    """The snapshot to go on from, by --resume; None: start anew."""
    if config.resume != "auto":
        return Path(config.resume) if config.resume else None
    source, passed_over = from_first_rank(lambda: find_newest(snapshot_dir), runtime)
    for why in passed_over:
        log.line(f"passed over: {why}")
    if source is None:
        log.line(f"nothing to resume in {snapshot_dir}: starting anew")
    return source


def take_over(trainer: Trainer, state: TrainState, source: Path, log: RunLog) -> None:
    """Takes over `state`, that of the snapshot `source`. Raises `UserError` where it does not fit."""
    config = trainer.config
    try:
        trainer.load_state(state)
    except UserError as problem:
        raise UserError(f"--resume {source}: {problem}") from None
    _say_changes(trainer, state, source, log)
    if state.epoch >= config.epochs:
        log.line(
            f"{source} has finished epoch {state.epoch} of the {config.epochs} asked for: evaluating only"
        )
        best = from_first_rank(
            lambda: find_best(source, source.parent, trainer.best_epoch, trainer.history),
            trainer.runtime,
        )
        if config.select == "best" and not best:
            raise UserError(
                f"--select best: no snapshot of the best epoch {trainer.best_epoch} is beside {source}"
            )


def make_room(trainer: Trainer, log: RunLog, snapshot_dir: Path, source: Path | None) -> None:
    """Keeps an earlier run's snapshots from being overwritten, and of the run that goes on its best snapshot and the one
    that it goes on from at hand: whatever ends it, `--resume auto` then finds it."""
    in_place = source is not None and source.resolve().parent == snapshot_dir.resolve()
    best = None
    if source:
        best = from_first_rank(
            lambda: find_best(source, snapshot_dir, trainer.best_epoch, trainer.history),
            trainer.runtime,
        )
    if trainer.runtime.rank == 0:
        _move_and_copy(trainer, log, snapshot_dir, source, best, trainer.epoch if in_place else 0)
    if source and trainer.config.keeps_best and trainer.best_epoch and not best:
        log.line(
            f"no snapshot of the best epoch {trainer.best_epoch} is beside {source}: the best is sought anew"
        )
        trainer.best_accuracy, trainer.best_epoch = 0.0, 0


def _move_and_copy(
    trainer: Trainer,
    log: RunLog,
    snapshot_dir: Path,
    source: Path | None,
    best: Path | None,
    keep_up_to: int,
) -> None:
    wanted = {LAST: source, BEST: best if trainer.config.keeps_best else None}
    try:
        contents = {name: path.read_bytes() for name, path in wanted.items() if path}
        moved = move_aside(snapshot_dir, keep_up_to, trainer.best_epoch)
        if moved:
            log.line(f"moved the snapshots of an earlier run to {moved}")
        for name, content in contents.items():
            if not (snapshot_dir / name).exists():
                save(content, snapshot_dir / name)
    except OSError as problem:
        raise UserError(
            f"--snapshot_dir {snapshot_dir}: {problem.strerror}; choose another directory"
        ) from None


def _say_changes(trainer: Trainer, state: TrainState, source: Path, log: RunLog) -> None:
    """Tells what is not as it was in the run that `source` is from.

    Raises `UserError` for what would alter its result, unless --resume_override.
    """
    config, splits = trainer.config, trainer.splits
    former = settings_from_dict(state.config)
    of_this_command = {name: getattr(config, name) for name in ("resume", "resume_override")}
    both_taught = former.teacher and config.teacher
    if both_taught:  # whose weights count, not where they lie
        of_this_command["teacher"] = config.teacher
    allowed, altering = changed_settings(dataclasses.replace(former, **of_this_command), config)
    if not altering and not splits.has_statistics(state.mean, state.std):
        altering = ["the training images (their channel statistics are others)"]
    if (
        both_taught
        and trainer.teacher
        and trainer.teacher.sha256 != state.config.get("teacher_sha256")
    ):
        altering.append(f"the teacher {config.teacher} (its weights are others)")
    if altering and not config.resume_override:
        raise UserError(
            f"{', '.join(altering)} would alter the result of the run in {source}; put it back, or add "
            f"--resume_override to go on all the same"
        )
    changes = ", ".join(allowed + altering)
    log.line(
        f"resuming after epoch {state.epoch} from {source}"
        + (f"; changed: {changes}" if changes else "")
    )
    if may_have_seen(state, splits, config):
        log.line("warning: this run has seen the validation images that are held back now, and the accuracy on them will be "
                 "too high, unless it was trained on others")  # fmt: skip
    if not keeps_momenta(former, config):
        log.line(
            "the optimizer's momenta start anew: what the snapshot keeps of them fits other settings"
        )
    before, now = state.config.get("computed_on"), trainer.runtime.computed_on
    if before not in (None, now):
        log.line(
            f"that run computed on {before}, this one on {now}: rounding differs, so that the result is another"
        )
    before, now = state.config.get("world_size", 1), trainer.runtime.world_size
    if before != now:
        log.line(f"that run had {before} {'rank' if before == 1 else 'ranks'}, this one has {now}: order and batches stay "
                 f"the same, but augmentation, dropout and rounding do not, so that the result is another")  # fmt: skip
    if config.epochs > former.epochs and state.history:
        step = state.epoch * len(trainer.batches)
        log.line(
            f"--epochs {config.epochs} stretches the schedule: the learning rate, {state.history[-1]['lr']:.3g} at the "
            f"end of epoch {state.epoch}, goes on at {trainer.rate(step):.3g} and reaches --min_lr in epoch "
            f"{config.epochs}; a run that had {config.epochs} epochs from the start would end elsewhere"
        )
        if config.image_sizes:
            sizes = former.image_size(state.epoch), config.image_size(state.epoch + 1)
            log.line(
                f"so do the parts of --image_sizes: from {sizes[0]} pixels the training goes on at {sizes[1]}"
            )
