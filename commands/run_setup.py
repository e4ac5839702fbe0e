"""What a run starts from: a snapshot, trained models, and settings that follow from both."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from cifarnet.augment.mixing import Mixing
from cifarnet.checkpoints.folder import find_newest, outdated
from cifarnet.checkpoints.paths import BEST, LAST, each_model
from cifarnet.checkpoints.resume import CurrentRun, ResumePlan, seen_images
from cifarnet.checkpoints.snapshots import load_trained, write_snapshot
from cifarnet.checkpoints.trained import TrainedModel, check_classes
from cifarnet.core.device import Runtime
from cifarnet.core.errors import UserError, os_errors
from cifarnet.core.files import move_aside, read_file
from cifarnet.core.log import RunLog
from cifarnet.core.ranks import broadcast_from_rank0
from cifarnet.images.imageset import Splits
from cifarnet.reporting.report_files import move_report_of_other_run
from cifarnet.settings import Settings
from cifarnet.settings.training import BATCH_SIZE
from cifarnet.training.objective import Distillation, Mixed, Objective, label_objective
from cifarnet.training.plan import Plan
from commands.run import Run, best_snapshot
from model import start_from
from train import Learner

LEAST_SHARE = 1 / 8  # of the last batch of an epoch, if the default --batch_size allows it


def find_source(settings: Settings, directory: Path, runtime: Runtime, log: RunLog) -> Path | None:
    """The snapshot that --resume means; None: the run is new. `directory` is searched."""
    if settings.output.resume != "auto":
        return Path(settings.output.resume) if settings.output.resume else None
    source, reasons = broadcast_from_rank0(lambda: find_newest(directory), runtime)
    for why in reasons:
        log.line(f"skipped: {why}")
    if source is None:
        log.line(f"nothing to resume in {directory}: starting a new run")
    return source


def read_models(flag: str, settings: Settings, runtime: Runtime) -> list[TrainedModel]:
    """The trained models that `flag`, init or teacher, names. Raises `UserError`."""
    return broadcast_from_rank0(lambda: each_model(flag, settings, load_trained), runtime)


def fit_batch(settings: Settings, count: int, runtime: Runtime, log: RunLog) -> Settings:
    """`settings` with a --batch_size of at most `count`, the number of training images. The
    default is lower where the last batch of an epoch would be tiny. Raises `UserError` if a
    --batch_size was given and is too large."""
    size = settings.training.batch_size
    if size:
        if size > count:
            raise UserError(f"--batch_size {size} is above the {count} training images; lower it")
        settings.check_parts(runtime.world_size)  # a snapshot's size was not checked yet
        return settings
    parts = settings.training.accumulate * runtime.world_size
    size = min(BATCH_SIZE, count) // parts * parts
    if not size:
        raise UserError(
            f"{min(BATCH_SIZE, count)} images cannot be divided into the {parts} parts of a batch; "
            f"lower --accumulate, or give --batch_size"
        )
    why = f"a multiple of {parts}"
    if count < BATCH_SIZE:
        why = (
            f"as there are {count} training images; a smaller batch size gives more steps an epoch"
        )
    # A step on few images moves the weights as far as one on a whole batch.
    fitting = (n for n in range(size, 0, -parts) if not 0 < count % n < LEAST_SHARE * n)
    most, size = size, next(fitting, size)
    if size < most:
        why = f"as with {most} the last batch would have too few images: {count % most}"
    if size < BATCH_SIZE:
        log.line(f"--batch_size is {size}, {why}")
    fitted = settings.replace(batch_size=size)
    fitted.check_parts(runtime.world_size)
    return fitted


def current_run(
    splits: Splits, runtime: Runtime, plan: Plan, teachers: Sequence[TrainedModel]
) -> CurrentRun:
    """The facts of this run that snapshots and trained models are compared with."""
    return CurrentRun(
        settings=plan.settings,
        classes=splits.train.classes,
        same_normalization=splits.same_normalization,
        validates=splits.val is not None,
        drawn_test=splits.drawn_test,
        held_out_sha256=(splits.test if splits.val is None else splits.val).sha256,
        teacher_sha256=",".join(sorted(teacher.sha256 for teacher in teachers)) or None,
        computed_on=runtime.computed_on,
        world_size=runtime.world_size,
        rate_after=lambda epochs: plan.rate(plan.first_step(epochs + 1)),
    )


# --- init ---


def initialize(network: nn.Module, model: TrainedModel, current: CurrentRun, log: RunLog) -> None:
    """Loads the weights of `model`, which --init names, into `network`. Raises `UserError`."""
    initial, rows = start_from(network, model, current.classes)
    head = _describe_head(model, current, rows)
    log.line(f"starting from the weights {model.source}: {_describe(model)}{head}")
    unmatched = [name for name in initial if not name.startswith("head.")]  # the line above says it
    if unmatched:
        more = f" and {len(unmatched) - 8} more" if len(unmatched) > 8 else ""
        log.line(f"randomly initialized, no matching weights: {', '.join(unmatched[:8])}{more}")
    dataset = model.settings.data.dataset
    shared = set(model.classes) & set(current.classes)
    if model.classes == current.classes or (shared and dataset == current.settings.data.dataset):
        _warn_of_held_out_images("the network that --init names", model, current, log)


def _describe_head(model: TrainedModel, current: CurrentRun, rows: int) -> str:
    """What becomes of the head, in words; it was loaded for `rows` classes."""
    if rows:
        if model.classes == current.classes:
            return ""
        return f"; head loaded for {rows} of {len(current.classes)} classes, matched by name"
    if set(model.classes) & set(current.classes):
        return "; with a new head, as its shape differs"
    return f"; with a new head, as its classes differ ({', '.join(model.classes[:3])}, ...)"


# --- objective ---


def choose_objective(
    teachers: Sequence[TrainedModel],
    splits: Splits,
    current: CurrentRun,
    runtime: Runtime,
    log: RunLog,
) -> Objective:
    """What the network learns from: `teachers`, or the labels. Raises `UserError`."""
    objective = base_objective(teachers, splits, current, runtime, log)
    settings = current.settings
    if settings.augmentation.mixes:
        classes, seed = len(current.classes), settings.training.seed
        objective = Mixed(objective, Mixing(settings.augmentation, seed, classes, runtime.rank))
        log.line("images are mixed: the training accuracy counts the class of larger share")
    return objective


def base_objective(
    teachers: Sequence[TrainedModel],
    splits: Splits,
    current: CurrentRun,
    runtime: Runtime,
    log: RunLog,
) -> Objective:
    """The objective for images that are not mixed. Raises `UserError`."""
    training = current.settings.training
    if not teachers:
        labels = splits.train.labels.to(runtime.device)
        return label_objective(training, labels, len(current.classes))
    built = []
    for teacher in teachers:
        built.append((_build_teacher(teacher, current), (teacher.mean, teacher.std)))
        accuracy, origin = "", teacher.origin
        if origin.accuracy is not None:
            accuracy = f", top-1 {origin.accuracy:.2%} ({origin.accuracy_from})"
        log.line(f"learning from {teacher.source}: {_describe(teacher)}{accuracy}")
        which = "the teacher" if len(teachers) == 1 else f"the teacher {teacher.source}"
        _warn_of_held_out_images(which, teacher, current, log)
    repeats = 0 < training.teacher_epochs < training.epochs
    of_images = (splits.mean, splits.std)
    return Distillation(built, runtime, of_images, training.teacher_tta, repeats)


def _build_teacher(teacher: TrainedModel, current: CurrentRun) -> nn.Module:
    """The network of `teacher`. Raises `UserError` if it cannot teach this run."""
    try:
        check_classes(teacher.classes, current.classes)
        if teacher.image_size != current.settings.data.image_size:
            raise UserError(f"it was trained with --image_size {teacher.image_size}; add that")
        return teacher.build()
    except UserError as problem:
        raise UserError(f"--teacher {teacher.source}: {problem}") from None


def _warn_of_held_out_images(
    which: str, model: TrainedModel, current: CurrentRun, log: RunLog
) -> None:
    """Warns if `model`, or a model that it learnt from, may have seen held-out images."""
    former = model.settings.training
    source = former.init or former.teacher
    seen = seen_images(model, current)
    if seen:
        flags = "--val_fraction and --limit_train"
        if current.drawn_test:
            flags = f"--test_fraction, {flags}"
        log.line(
            f"warning: {which} may have trained on the {seen}; accuracy on them may be too high. "
            f"Train it with the same images, {flags}"
        )
    elif current.validates and source:
        log.line(
            f"warning: {which} learnt from {source}; accuracy on validation images that were used "
            f"there is too high"
        )


def _describe(model: TrainedModel) -> str:
    epochs = model.settings.training.epochs
    return f"epoch {model.origin.epoch} of {epochs} on {model.origin.dataset}"


# --- resume ---


def restore_run(learner: Learner, plan: ResumePlan, log: RunLog) -> None:
    """Loads the snapshot of `plan` into `learner`. Raises `UserError` if it does not fit."""
    try:
        learner.load(plan.snapshot, plan.keeps_momenta)
    except UserError as problem:
        raise UserError(f"--resume {plan.source}: {problem}") from None
    learner.progress.comparable_after = plan.comparable_after
    for message in plan.messages:
        log.line(message)
    needs_best = plan.finished and learner.settings.evaluation.select == "best"
    if needs_best and not best_snapshot(learner, plan.source, plan.source.parent):
        raise UserError(
            f"--select best: no snapshot of the best epoch {learner.progress.best_epoch} is beside "
            f"{plan.source}; leave it out"
        )


def archive_old_report(run: Run) -> None:
    """Moves the report of another run in --plot_dir aside. Raises `UserError`."""
    directory, run_id = run.folders["plot_dir"], run.learner.progress.run_id
    with os_errors(f"--plot_dir {directory}: cannot write there", "choose another folder"):
        moved = move_report_of_other_run(directory, run_id, is_new=run.resume is None)
    if moved:
        run.log.line(f"moved the report of an earlier run to {moved}")


def snapshots_to_keep(run: Run) -> dict[str, bytes]:
    """The content of the run's newest and best snapshot, by name, if it continues from another
    folder. `--resume auto` then finds them even after a crash. Raises `UserError` if they cannot be
    read."""
    plan, progress, directory = run.resume, run.learner.progress, run.folders["snapshot_dir"]
    best = None
    if plan and run.settings.keeps_best and progress.best_epoch:
        best = best_snapshot(run.learner, plan.source, directory)
        if not best:
            run.log.line(
                f"no snapshot of the best epoch {progress.best_epoch} is beside {plan.source}: "
                f"the best epoch is chosen from the following ones"
            )
            progress.comparable_after = progress.epoch
    wanted = {LAST: plan and plan.source, BEST: best}
    return {name: read_file(path) for name, path in wanted.items() if path and not run.runtime.rank}


def snapshots_of_others(run: Run) -> list[Path]:
    """The snapshots of other runs in --snapshot_dir. Raises `UserError` if one cannot be read."""
    plan, progress, directory = run.resume, run.learner.progress, run.folders["snapshot_dir"]
    in_place = plan is not None and directory.resolve() in (
        *(plan.source.parent.resolve(), plan.source.resolve().parent),  # a link may lie there
    )
    return outdated(directory, progress.epoch if in_place else 0, progress.best_epoch)


def archive_old_snapshots(run: Run, others: list[Path], contents: dict[str, bytes]) -> None:
    """Moves the snapshots `others` aside, and writes `contents` where the run keeps its own. Raises
    `UserError`."""
    directory = run.folders["snapshot_dir"]
    with os_errors(f"--snapshot_dir {directory}: cannot write there", "choose another folder"):
        moved = move_aside(others, directory)
        if moved:
            run.log.line(f"moved the snapshots of an earlier run to {moved}")
        for name, content in contents.items():
            if not (directory / name).exists():
                write_snapshot(content, directory / name)
