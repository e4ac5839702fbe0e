"""What a run starts from: a snapshot, trained networks, and settings that follow from both."""

from functools import partial
from pathlib import Path
from typing import Any

from cifarnet.augment.mixing import Mixing
from cifarnet.checkpoints.places import find_named
from cifarnet.checkpoints.resume import Present, Resumption, may_have_seen, plan_resumption
from cifarnet.checkpoints.snapshots import find_best, find_newest, read_trained
from cifarnet.checkpoints.state import TrainState, check_classes
from cifarnet.checkpoints.weights import Weights, fingerprint
from cifarnet.core.device import Runtime, without_amp
from cifarnet.core.errors import UserError
from cifarnet.core.log import RunLog
from cifarnet.core.ranks import from_first_rank
from cifarnet.images.imageset import Splits
from cifarnet.settings import Settings, settings_from_dict
from cifarnet.settings.training import BATCH_SIZE
from cifarnet.training.objective import Distillation, Labels, Mixed, Objective, balanced_weights
from model import Network, restore, start_from
from train import Learner, Plan


def find_source(
    settings: Settings, snapshot_dir: Path, runtime: Runtime, log: RunLog
) -> Path | None:
    """The snapshot that --resume means; None: the run starts anew."""
    if settings.output.resume != "auto":
        return Path(settings.output.resume) if settings.output.resume else None
    source, passed_over = from_first_rank(lambda: find_newest(snapshot_dir), runtime)
    for why in passed_over:
        log.line(f"passed over: {why}")
    if source is None:
        log.line(f"nothing to resume in {snapshot_dir}: starting anew")
    return source


def adapted_settings(
    settings: Settings,
    runtime: Runtime,
    given: dict[str, Any],
    state: TrainState | None,
    log: RunLog,
) -> tuple[Settings, Runtime]:
    """Settings and precision, adapted to the machine and to the resumed run `state`."""
    if settings.precision.amp and not given.get("amp"):
        settings, runtime = _amp_that_pays(settings, runtime, state, log)
    if state and settings.training.batch_size is None:  # the default, fitted to the images then
        kept = settings_from_dict(state.config).training.batch_size
        settings = settings.replace(batch_size=kept)
    return settings, runtime


def _amp_that_pays(
    settings: Settings, runtime: Runtime, state: TrainState | None, log: RunLog
) -> tuple[Settings, Runtime]:
    """Drops a preset --amp if the CPU only emulates bf16, or if `state` is of a float32 run."""
    if state is None:
        keeps, why = (
            not runtime.emulates_bf16,
            "without bf16 instructions it takes many times longer",
        )
    else:
        keeps, why = (
            settings_from_dict(state.config).precision.amp,
            "the run to go on with has none",
        )
    if keeps:
        return settings, runtime
    log.line(f"in float32 instead of --amp: {why}")
    return settings.replace(amp=False), without_amp(runtime)


def read_trained_networks(
    settings: Settings, starts: bool, trains: bool, runtime: Runtime
) -> dict[str, Weights]:
    """The networks that --init (a run that `starts`) and --teacher (one that `trains`) name."""
    flags = [flag for flag, used in (("init", starts), ("teacher", trains)) if used]
    return {
        flag: from_first_rank(partial(find_named, flag, settings, read_trained), runtime)
        for flag in flags
        if getattr(settings.training, flag)
    }


def fit_batch(settings: Settings, count: int, runtime: Runtime, log: RunLog) -> Settings:
    """`settings` with a --batch_size of at most `count`, the number of training images.

    Lowers the default. Raises `UserError` if a --batch_size was given and is too large.
    """
    if settings.training.batch_size:
        if settings.training.batch_size > count:
            raise UserError(
                f"--batch_size {settings.training.batch_size} is above the {count} training images; lower it"
            )
        return settings
    parts = settings.training.accumulate * runtime.world_size
    size = min(BATCH_SIZE, count) // parts * parts
    if not size:
        raise UserError(
            f"{min(BATCH_SIZE, count)} images cannot be divided into the {parts} parts of a batch; "
            f"lower --accumulate, or give --batch_size"
        )
    if size < BATCH_SIZE:
        smaller = "; a smaller one, such as 32, takes more steps" if size > 32 else ""
        log.line(f"--batch_size is {size}, as there are {count} training images{smaller}")
    fitted = settings.replace(batch_size=size)
    fitted.check_parts(runtime.world_size)
    return fitted


def present_run(splits: Splits, runtime: Runtime, plan: Plan, teacher: Weights | None) -> Present:
    """The facts of this run that snapshots and trained networks are compared with."""
    return Present(
        settings=plan.settings,
        classes=splits.train.classes,
        same_statistics=splits.same_normalization,
        validates=splits.val is not None,
        teacher_sha256=teacher and fingerprint(teacher.model),
        computed_on=runtime.computed_on,
        world_size=runtime.world_size,
        rate_after=lambda epochs: plan.rate(plan.first_step(epochs + 1)),
    )


def start_from_init(network: Network, trained: Weights, present: Present, log: RunLog) -> None:
    """Loads the weights that --init names into `network`. Raises `UserError`."""
    fresh = start_from(network, trained, present.classes)
    same = list(trained.classes) == list(present.classes)
    known = sum(name in trained.classes for name in present.classes)
    others, head = ", ".join(trained.classes[:3]), ""
    if not known:
        head = f"; with a new head, as its classes are others ({others}, ...)"
    elif not same:
        head = f"; its head knows {known} of the {len(present.classes)} classes, by their names"
    log.line(f"starting from the weights {trained.source}: {_origin(trained)}{head}")
    new = known < len(present.classes)  # classes: the line above says so
    unknown = [name for name in fresh if not (new and name.startswith("head."))]
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        log.line(f"fresh, as those weights do not fit: {', '.join(unknown[:8])}{more}")
    if same:
        _warn_of_seen("the network that --init names", trained, present, log)


def choose_objective(
    teacher: Weights | None, splits: Splits, present: Present, runtime: Runtime, log: RunLog
) -> Objective:
    """What the network learns from: `teacher`, or the labels. Raises `UserError`."""
    objective = _unmixed(teacher, splits, present, runtime, log)
    settings = present.settings
    if settings.augmentation.mixes:
        objective = Mixed(
            objective,
            Mixing(
                settings.augmentation, settings.training.seed, len(present.classes), runtime.rank
            ),
        )
        log.line("images are mixed: the training accuracy counts the class of larger share")
    return objective


def _unmixed(
    teacher: Weights | None, splits: Splits, present: Present, runtime: Runtime, log: RunLog
) -> Objective:
    """The objective for images that are not mixed."""
    settings = present.settings
    if teacher is None:
        weights = None
        if settings.training.class_weights == "balanced":
            labels = splits.train.labels
            weights = balanced_weights(labels, len(present.classes)).to(runtime.device)
        return Labels(settings.training.smoothing, weights)
    try:
        check_classes(teacher.classes, present.classes)
        size = settings_from_dict(teacher.config).data.image_size
        if size != settings.data.image_size:
            raise UserError(f"it was trained with --image_size {size}; add that")
        network = restore(teacher)
    except UserError as problem:
        raise UserError(f"--teacher {teacher.source}: {problem}") from None
    top1 = "" if teacher.accuracy is None else f", top-1 {teacher.accuracy:.2%}"
    source = f" ({teacher.accuracy_from})" if top1 else ""
    log.line(f"learning from {teacher.source}: {_origin(teacher)}{top1}{source}")
    _warn_of_seen("the teacher", teacher, present, log)
    own, given = (tuple(teacher.mean), tuple(teacher.std)), (splits.mean, splits.std)
    return Distillation(network, runtime, own, given)


def _warn_of_seen(which: str, trained: Weights, present: Present, log: RunLog) -> None:
    """Warns if `trained`, or a network that it learnt from, may have seen validation images."""
    former = settings_from_dict(trained.config)
    source = former.training.init or former.training.teacher
    if may_have_seen(trained, present):
        log.line(
            f"warning: {which} may have trained on the validation images; accuracy on them may be "
            f"too high. Train it with the same images, --val_fraction and --limit_train"
        )
    elif present.validates and source:
        log.line(
            f"warning: {which} learnt from {source}; if that one has seen the validation images, "
            f"accuracy on them is too high"
        )


def _origin(trained: Weights) -> str:
    epochs = settings_from_dict(trained.config).training.epochs
    return f"epoch {trained.epoch} of {epochs} on {trained.dataset}"


def take_over(
    learner: Learner, state: TrainState, source: Path, present: Present, log: RunLog
) -> Resumption:
    """Loads `state`, of the snapshot `source`, into `learner`, or raises `UserError`."""
    resumption = plan_resumption(state, source, present)
    try:
        learner.load(resumption.state, resumption.keeps_momenta)
    except UserError as problem:
        raise UserError(f"--resume {source}: {problem}") from None
    for line in resumption.said:
        log.line(line)
    progress = learner.progress
    if resumption.finished and present.settings.evaluation.select == "best":
        find = partial(find_best, source, source.parent, progress.best_epoch, progress.run_id)
        if not from_first_rank(find, learner.runtime):
            raise UserError(
                f"--select best: no snapshot of the best epoch {progress.best_epoch} is beside "
                f"{source}; leave it out"
            )
    return resumption
