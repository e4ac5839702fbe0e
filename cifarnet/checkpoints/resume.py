"""How a run continues from a snapshot: computes the plan, or raises UserError."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.snapshots import Snapshot
from cifarnet.checkpoints.trained import ModelInfo, check_classes
from cifarnet.core.errors import UserError
from cifarnet.settings import Settings, changed_settings, settings_from_dict
from cifarnet.settings.output import SNAPSHOTS

# They decide which images are held out, and at which size.
HELD_OUT_FLAGS = ("dataset", "labels", "val_fraction", "limit_train", "limit_test", "test_fraction")
HELD_OUT_FLAGS += ("skip_bad_images", "image_size")


@dataclass(frozen=True)
class CurrentRun:
    """The settings, data and machine of the current run, to compare with a snapshot."""

    settings: Settings
    classes: tuple[str, ...]
    same_normalization: Callable[[tuple[float, ...], tuple[float, ...]], bool]  # mean, deviation
    validates: bool  # whether training images are held out
    drawn_test: bool  # see `Splits`
    held_out_sha256: str  # of the images that the best epoch is chosen by
    teacher_sha256: str | None
    computed_on: str  # device and precision, in words
    world_size: int
    rate_after: Callable[[int], float]  # learning rate of the first step after so many epochs


# What the current settings change in the run of a snapshot, in words: what they may change, and
# what alters the result.
Changes = tuple[list[str], list[str]]


@dataclass(frozen=True)
class ResumePlan:
    """What follows from a snapshot and the current run."""

    snapshot: Snapshot
    source: Path
    keeps_momenta: bool  # the optimizer's state fits
    finished: bool  # no epoch is left to train
    comparable_after: int  # see `Progress`
    messages: tuple[str, ...]  # for the log


def kept_settings(snapshot: Snapshot, source: Path, flags: dict[str, Any]) -> Settings:
    """The settings kept in the snapshot `source`, under the `flags` that the user gives now.

    A --run_dir in `flags` replaces the kept folders. Without one, a snapshot that lies in a run's
    folder continues there, even if that was renamed. Raises `UserError` for a contradiction.
    """
    config = snapshot.model.origin.settings
    left_out = {"preview_augment", "recipe", "resume", "resume_override"}
    run_dir: dict[str, Any] = {}
    if "run_dir" in flags:
        left_out |= {"log_dir", "snapshot_dir", "plot_dir"}
    elif config["snapshot_dir"] is None and source.absolute().parent.name == SNAPSHOTS:
        in_run = source if source.parent.name else source.absolute()  # a bare name has no parent
        run_dir = {"run_dir": str(in_run.parent.parent)}
    inherited = {name: value for name, value in config.items() if name not in left_out}
    return settings_from_dict(inherited | run_dir | flags)


def compare_settings(snapshot: Snapshot, source: Path, settings: Settings) -> Changes:
    """What `settings` change in the run of the snapshot `source`. Raises `UserError` for changes
    that would alter the result, unless --resume_override."""
    former = snapshot.settings
    ignored = {name: settings.flags[name] for name in ("resume", "resume_override")}
    if former.training.teacher and settings.training.teacher:  # a teacher is known by its weights
        ignored["teacher"] = settings.training.teacher
    changes = changed_settings(former.replace(**ignored), settings)
    _refuse(changes[1], source, settings)
    return changes


def _refuse(altering: list[str], source: Path, settings: Settings) -> None:
    if altering and not settings.output.resume_override:
        raise UserError(
            f"{', '.join(altering)} would alter the result of the run in {source}; use the old "
            f"value, or add --resume_override to continue anyway"
        )


def plan_resume(
    snapshot: Snapshot, source: Path, changes: Changes, current: CurrentRun
) -> ResumePlan:
    """How the run `current` continues from `snapshot`, which was read from `source`.

    `changes` are those of `compare_settings`. Raises `UserError` if it cannot: other classes, or
    images or a teacher that would alter the result, unless --resume_override.
    """
    settings, former, epoch = current.settings, snapshot.settings, snapshot.epoch
    allowed, altering = changes
    try:
        check_classes(snapshot.model.classes, current.classes)
    except UserError as problem:
        raise UserError(f"--resume {source}: {problem}") from None
    other = _other_data(snapshot, current, same_flags=not altering)
    _refuse(other, source, settings)
    listed = ", ".join([*allowed, *altering, *other])
    messages = [
        f"resuming after epoch {epoch} from {source}" + (f"; changed: {listed}" if listed else "")
    ]
    seen = seen_images(snapshot.model, current)
    if seen and snapshot.state.held_out_sha256 != current.held_out_sha256:
        messages.append(
            f"warning: this run may have trained on images that are now {seen}; accuracy on them "
            f"may be too high"
        )
    # what an optimizer keeps of each weight
    kinds = {(each.training.optimizer, each.training.decay_norms) for each in (former, settings)}
    keeps_momenta = len(kinds) == 1
    if not keeps_momenta:
        messages.append("optimizer state is reset: the settings have changed")
    messages += _other_machine(snapshot, current)
    epochs = settings.training.epochs
    finished = epoch >= epochs
    if epochs > former.training.epochs and not finished:
        messages.append(
            f"--epochs {epochs} stretches the schedule and --image_sizes: the learning rate was "
            f"{snapshot.state.history[-1].lr:.3g} at the end of epoch {epoch} and continues at "
            f"{current.rate_after(epoch):.3g}; a run that had {epochs} epochs from the start would "
            f"give another result"
        )
    if finished:
        messages.append(f"{source} is at epoch {epoch} of {epochs}: evaluating only")
    comparable_after = snapshot.state.comparable_after
    other_images = _other_held_out(snapshot, current)
    other_weights = former.evaluation.evaluate != settings.evaluation.evaluate
    if not finished and (other_images or other_weights):
        comparable_after = epoch
        what = "the held-out images have" if other_images else "--evaluate has"
        messages.append(f"{what} changed: the best epoch is chosen from later ones")
    return ResumePlan(snapshot, source, keeps_momenta, finished, comparable_after, tuple(messages))


def _other_held_out(snapshot: Snapshot, current: CurrentRun) -> bool:
    """Whether other images select the best epoch than in the run of `snapshot`: by their checksum,
    or by the flags, as snapshots of earlier versions have no checksum."""
    if checksum := snapshot.state.held_out_sha256:
        return checksum != current.held_out_sha256
    before, now = snapshot.settings.flags, current.settings.flags
    unused = "limit_test" if current.validates else "limit_train"
    return any(before[name] != now[name] for name in HELD_OUT_FLAGS if name != unused)


def _other_data(snapshot: Snapshot, current: CurrentRun, same_flags: bool) -> list[str]:
    """Images and teacher that differ from those of the run of `snapshot`, in words."""
    changed, model = [], snapshot.model
    if same_flags and not current.same_normalization(model.mean, model.std):
        changed.append("the training images (their channel statistics differ)")
    has_teacher = snapshot.settings.training.teacher and current.teacher_sha256
    if has_teacher and current.teacher_sha256 != snapshot.state.teacher_sha256:
        changed.append(f"the teacher {current.settings.training.teacher} (its weights differ)")
    return changed


def _other_machine(snapshot: Snapshot, current: CurrentRun) -> list[str]:
    """Says that another device or number of ranks changes the result."""
    messages = []
    before, now = snapshot.model.origin.computed_on, current.computed_on
    if before != now:
        messages.append(
            f"computed on {before} before, on {now} now: rounding differs, and so will the result"
        )
    before, now = snapshot.state.world_size, current.world_size
    if before != now:
        messages.append(
            f"that run had {before} {'rank' if before == 1 else 'ranks'}, this one has {now}: "
            f"batches stay the same, but augmentation, dropout and rounding differ, "
            f"and so will the result"
        )
    return messages


def seen_images(model: ModelInfo, current: CurrentRun) -> str:
    """Which held-out images of `current` `model` may have trained on, in words: validation images,
    or test images that are drawn from a folder. Empty: none.

    Images that `model` held out too do not count: of the same data set, by the same flags. Where
    the flags of the training images differ, it is not known whether files were added.
    """
    before, now = model.settings.flags, current.settings.flags
    same_flags = all(before[n] == now[n] for n in ("dataset", "val_fraction", "limit_train"))
    same_images = current.same_normalization(model.mean, model.std)
    other_test = before["test_fraction"] != now["test_fraction"] or (same_flags and not same_images)
    seen = []
    if current.validates and not (same_flags and same_images):
        seen.append("validation images")
    if current.drawn_test and before["dataset"] == "folder" and other_test:
        seen.append("test images")
    return " and ".join(seen)
