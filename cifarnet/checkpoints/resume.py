"""How a run goes on from a snapshot: first a pure plan, or a refusal; then it is carried out."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.places import BEST, LAST
from cifarnet.checkpoints.snapshots import move_aside, save
from cifarnet.checkpoints.state import TrainState, check_classes
from cifarnet.checkpoints.weights import Weights
from cifarnet.core.errors import UserError
from cifarnet.settings import Settings, changed_settings, settings_from_dict
from cifarnet.settings.output import SNAPSHOTS


@dataclass(frozen=True)
class Present:
    """The settings, data and machine of the current run, to compare with a snapshot."""

    settings: Settings
    classes: tuple[str, ...]
    same_statistics: Callable[[list[float], list[float]], bool]  # of mean and deviation
    validates: bool  # whether training images are held back
    teacher_sha256: str | None
    computed_on: str  # device and precision, in words
    world_size: int
    rate_after: Callable[[int], float]  # learning rate of the first step after so many epochs


@dataclass(frozen=True)
class Resumption:
    """What follows from a snapshot and the present settings."""

    state: TrainState  # its best epoch is forgotten where that was measured otherwise
    source: Path
    keeps_momenta: bool  # the optimizer's state fits
    finished: bool  # no epoch is left to train
    said: tuple[str, ...]  # for the log


def kept_settings(state: TrainState, source: Path, given: dict[str, Any]) -> Settings:
    """The settings kept in the snapshot `source`, with the flags `given` now laid over them.

    A --run_dir given now replaces the kept folders. Without one, a snapshot that lies in a run's
    folder continues there, even if that was renamed. Raises `UserError` for a contradiction.
    """
    left_out = {"preview_augment", "recipe", "resume", "resume_override"}
    run_dir: dict[str, Any] = {}
    if "run_dir" in given:
        left_out |= {"log_dir", "snapshot_dir", "plot_dir"}
    elif state.config["snapshot_dir"] is None and source.absolute().parent.name == SNAPSHOTS:
        run_dir = {"run_dir": str(source.parent.parent)}
    kept = {name: value for name, value in state.config.items() if name not in left_out}
    return settings_from_dict(kept | run_dir | given)


def check_changes(
    state: TrainState, source: Path, settings: Settings
) -> tuple[list[str], list[str]]:
    """Returns what `settings` change in the run of `state`, in words: what may, and what must not.

    Raises `UserError` for changes that would alter the result, unless --resume_override.
    """
    former = settings_from_dict(state.config)
    ignored = {name: settings.flags[name] for name in ("resume", "resume_override")}
    if former.training.teacher and settings.training.teacher:  # a teacher is known by its weights
        ignored["teacher"] = settings.training.teacher
    allowed, altering = changed_settings(former.replace(**ignored), settings)
    _refuse(altering, source, settings)
    return allowed, altering


def _refuse(altering: list[str], source: Path, settings: Settings) -> None:
    if altering and not settings.output.resume_override:
        raise UserError(
            f"{', '.join(altering)} would alter the result of the run in {source}; use the old "
            f"value, or add --resume_override to continue anyway"
        )


def plan_resumption(state: TrainState, source: Path, present: Present) -> Resumption:
    """How the run of `present` goes on from `state`, the content of the snapshot `source`.

    Raises `UserError` where it must not: other classes, or settings that would alter the result,
    unless --resume_override.
    """
    settings, former = present.settings, settings_from_dict(state.config)
    try:
        check_classes(state.classes, present.classes)
    except UserError as problem:
        raise UserError(f"--resume {source}: {problem}") from None
    allowed, altering = check_changes(state, source, settings)
    other = _other_data(state, former, present, not altering)
    _refuse(other, source, settings)
    changes = ", ".join([*allowed, *altering, *other])
    said = [
        f"resuming after epoch {state.epoch} from {source}"
        + (f"; changed: {changes}" if changes else "")
    ]
    if may_have_seen(state, present):
        said.append(
            "warning: this run has trained on images that are now held back for validation; "
            "accuracy on them will be too high"
        )
    keeps_momenta = _optimizer_kind(former) == _optimizer_kind(settings)
    if not keeps_momenta:
        said.append("the optimizer's momenta start anew: the snapshot's fit other settings")
    said += _other_machine(state, present)
    finished = state.epoch >= settings.training.epochs
    if settings.training.epochs > former.training.epochs and not finished:
        said.append(
            f"--epochs {settings.training.epochs} stretches the schedule and --image_sizes: the learning "
            f"rate was {state.history[-1].lr:.3g} at the end of epoch {state.epoch} and goes on at "
            f"{present.rate_after(state.epoch):.3g}; a run that had {settings.training.epochs} epochs from "
            f"the start would end elsewhere"
        )
    if finished:
        said.append(
            f"{source} has finished epoch {state.epoch} of the {settings.training.epochs} asked for: "
            f"evaluating only"
        )
    measured = [
        row for row in state.history if row.val_loss is not None or row.test_loss is not None
    ]
    other_images = measured and (measured[-1].val_loss is not None) != present.validates
    if other_images or _judged_on(former) != _judged_on(settings):
        state = dataclasses.replace(state, best_accuracy=0.0, best_epoch=0)
    return Resumption(state, source, keeps_momenta, finished, tuple(said))


def _other_data(
    state: TrainState, former: Settings, present: Present, same_flags: bool
) -> list[str]:
    """Images and teacher that differ from those of the run of `state`, in words."""
    other = []
    if same_flags and not present.same_statistics(state.mean, state.std):
        other.append("the training images (their channel statistics are others)")
    taught = former.training.teacher and present.teacher_sha256
    if taught and present.teacher_sha256 != state.config["teacher_sha256"]:
        other.append(f"the teacher {present.settings.training.teacher} (its weights are others)")
    return other


def _other_machine(state: TrainState, present: Present) -> list[str]:
    """Says that another device or number of ranks changes the result."""
    said = []
    before, now = state.config["computed_on"], present.computed_on
    if before != now:
        said.append(
            f"that run computed on {before}, this one on {now}: "
            f"rounding differs, and so will the result"
        )
    before, now = state.config["world_size"], present.world_size
    if before != now:
        said.append(
            f"that run had {before} {'rank' if before == 1 else 'ranks'}, this one has {now}: "
            f"batches stay the same, but augmentation, dropout and rounding differ, "
            f"and so will the result"
        )
    return said


def may_have_seen(trained: TrainState | Weights, present: Present) -> bool:
    """Whether `trained` may have trained on images that are held back for validation now.

    It has not where it held back the same ones: of the same data set, by the same flags.
    """
    former = settings_from_dict(trained.config)
    before, now = (
        (settings.data.dataset, settings.data.val_fraction, settings.data.limit_train)
        for settings in (former, present.settings)
    )
    same_split = before == now and present.same_statistics(trained.mean, trained.std)
    return present.validates and not same_split


def _optimizer_kind(settings: Settings) -> tuple[Any, ...]:
    """The settings that say what an optimizer keeps of each weight."""
    return settings.training.optimizer, settings.training.decay_norms


def _judged_on(settings: Settings) -> tuple[Any, ...]:
    """The settings that say on which images, and with which weights, accuracy is measured."""
    limit = settings.data.limit_train if settings.data.val_fraction else settings.data.limit_test
    return (
        settings.evaluation.evaluate,
        settings.data.dataset,
        settings.data.skip_bad_images,
        settings.data.test_fraction,
        settings.data.image_size,
        settings.data.val_fraction,
        limit,
    )


def make_room(
    directory: Path, keep: Resumption | None, best: Path | None, say: Callable[[str], None]
) -> None:
    """Moves snapshots of other runs in `directory` aside, and copies this run's own into it.

    `keep` is how the run continues (None: it is new), `best` its best snapshot so far (None: there
    is none). If they are in another folder, they are copied here: `--resume auto` then finds them
    even after a crash. Raises `UserError` if the disk does not take them.
    """
    wanted = {LAST: keep.source if keep else None, BEST: best}
    in_place = keep is not None and keep.source.resolve().parent == directory.resolve()
    keep_up_to = keep.state.epoch if keep and in_place else 0
    try:
        contents = {name: path.read_bytes() for name, path in wanted.items() if path}
        moved = move_aside(directory, keep_up_to, keep.state.best_epoch if keep else 0)
        if moved:
            say(f"moved the snapshots of an earlier run to {moved}")
        for name, content in contents.items():
            if not (directory / name).exists():
                save(content, directory / name)
    except OSError as problem:
        raise UserError(
            f"--snapshot_dir {directory}: {problem.strerror}; choose another directory"
        ) from None
