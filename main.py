"""Trains CIFARNet, or its teacher, and reports on it: `python main.py --epochs 250 --amp`. See README.md, or --help."""

import contextlib
import dataclasses
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import plots
from cifarnet.checkpoints.resume import find_source, make_room, take_over
from cifarnet.checkpoints.snapshots import load, read_trained
from cifarnet.checkpoints.weights import Weights
from cifarnet.core.commandline import parse_settings
from cifarnet.core.device import Runtime, start
from cifarnet.core.errors import UserError, printable
from cifarnet.core.files import exclusive, writable_directory
from cifarnet.core.log import RunLog
from cifarnet.core.ranks import Group, LostContactError, agreed_check, from_first_rank, run_on_ranks
from cifarnet.core.settings import Settings, settings_from_dict, without_effect
from cifarnet.core.signals import Signals
from cifarnet.images.imageset import Splits, limited
from cifarnet.reporting.recorders import Recorder
from cifarnet.training.objective import Teacher
from data import build_engine, load_splits
from model import Network, build_model, model_table, parameter_count, start_from
from train import Trainer, may_have_seen

DESCRIPTION = "Trains CIFARNet (174,762 parameters) and reports on it."


def main(argv: Sequence[str] | None = None, presets: Sequence[str] = ()) -> int:
    """The command: exit code 0; 1 where the run failed, 2 for a wrong request, 130 after Ctrl-C, 143 after SIGTERM.

    `presets` are flags that a recipe and `argv` may overrule.
    """
    return run_on_ranks(
        lambda group: _run(sys.argv[1:] if argv is None else list(argv), presets, group)
    )


def _run(argv: list[str], presets: Sequence[str], group: Group) -> None:
    config = parse_settings(argv, DESCRIPTION, presets)
    command = ["run_complete_training.py" if presets else "main.py", *argv]
    runtime = start(config, group.ranks)
    first = runtime.rank == 0  # it alone reads and writes here, and speaks
    if config.preview_augment:
        if first:
            _preview(config, runtime)
        return
    log_dir, snapshot_dir, plot_dir = (
        writable_directory(getattr(config, flag), f"--{flag}")
        if first
        else Path(getattr(config, flag))
        for flag in ("log_dir", "snapshot_dir", "plot_dir")
    )
    lock = exclusive(snapshot_dir, "--snapshot_dir") if first else contextlib.nullcontext()
    with RunLog(quiet=not first) as log, lock, group.contact():
        log.line(f"{group.ranks.launcher} {shlex.join(command)}")
        source = find_source(config, log, snapshot_dir, runtime)
        state = from_first_rank(lambda: load(source), runtime) if source else None
        finished = state is not None and state.epoch >= config.epochs
        initial = None if state else _read_named("init", config, snapshot_dir, runtime)
        teaching = None if finished else _read_named("teacher", config, snapshot_dir, runtime)
        # perhaps a download: only now that all else was found
        splits = group.in_turn(lambda: load_splits(config, log.line))
        _check_batch_size(config, splits)
        model = build_model(config, len(splits.train.classes))
        if initial:
            _start_from(initial, model, splits, config, log)
        teacher = _teacher_of(teaching, splits, config, log, runtime) if teaching else None
        trainer = Trainer(model, splits, config, runtime, teacher)
        if state:
            take_over(trainer, state, source, log)
        recorder = Recorder(trainer, log, snapshot_dir, plot_dir, group)
        if first:
            log.open(log_dir)  # the request is accepted
            _describe(log, config, runtime, splits, trainer, group.ranks.launcher)
        if trainer.epoch < config.epochs:
            make_room(trainer, log, snapshot_dir, source)
        if first:
            for row in trainer.history:
                log.row(row)
        with Signals(patient=runtime.world_size > 1) as signals:
            try:
                _train(trainer, recorder, signals, group)
                recorder.finish(source)
            except (KeyboardInterrupt, LostContactError) as why:
                if first:
                    with signals.deferred():  # as another rank ends, torchrun signals this one
                        recorder.leave(f"{why}: ended after epoch {trainer.epoch}", command)
                raise


def _train(trainer: Trainer, recorder: Recorder, signals: Signals, group: Group) -> None:
    try:
        with signals.deferred(), group.contact():
            trainer.fit(recorder.on_epoch_end, agreed_check(signals, trainer.runtime))
    except RuntimeError:
        signals.check()  # a worker that got the signal too is no failure
        raise


def _check_batch_size(config: Settings, splits: Splits) -> None:
    if config.batch_size > len(splits.train):
        raise UserError(
            f"--batch_size {config.batch_size} is above the {len(splits.train)} training images; lower it"
        )


def _preview(config: Settings, runtime: Runtime) -> None:
    """Draws eight training images, and eight augmented versions of each, drawn as in training."""
    path = Path(config.preview_augment)
    if path.suffix.lower() != ".png":
        raise UserError(f"--preview_augment {path}: it will be a PNG file; end its name in .png")
    splits = load_splits(config, print)
    images = (
        limited(splits.train, max(8, len(splits.train.classes)), "--preview_augment")
        .images[:8]
        .numpy()
    )
    engine = build_engine(config, splits.mean, runtime.device)
    versions = [engine(images, config.seed, epoch) for epoch in range(1, 9)]
    try:
        plots.augmentations(images, versions, path)
    except OSError as problem:
        raise UserError(
            f"--preview_augment {path}: cannot write it ({problem.strerror}); name another"
        ) from None
    print(f"written to {path}")


def _describe(
    log: RunLog, config: Settings, runtime: Runtime, splits: Splits, trainer: Trainer, launcher: str
) -> None:
    """What the log opens with: settings, versions, device, data set, model."""
    settings = dataclasses.asdict(config).items()
    log.line("settings: " + printable(", ".join(f"{name}={value}" for name, value in settings)))
    for words in without_effect(config):
        log.line(f"warning: {words}")
    packages = ("torch", "torchvision", "numpy", "albumentations", "scikit-learn")
    log.line(
        f"versions: python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
    log.line(f"device: {runtime.device} ({runtime.device_name}), {runtime.threads} threads, {runtime.precision}, "
             f"{trainer.batches.workers} workers")  # fmt: skip
    if runtime.world_size > 1:
        log.line(f"ranks: {runtime.world_size} ({launcher}), each with that many threads and workers, and "
                 f"{config.batch_size // runtime.world_size} of the {config.batch_size} images of a batch")  # fmt: skip
    if runtime.keeps_memory:
        log.line(
            "memory: freed activations stay inside the process; --no-keep_memory gives them back, and is slower"
        )
    val = f", {len(splits.val)} validation" if splits.val is not None else ""
    mean, std = (" ".join(f"{x:.4f}" for x in values) for values in (splits.mean, splits.std))
    log.line(f"data: {splits.name}, {len(splits.train)} training{val}, {len(splits.test)} test images, "
             f"{len(splits.train.classes)} classes; mean {mean}, deviation {std}")  # fmt: skip
    if splits.val is None:
        freq = config.eval_freq
        when = "every epoch" if freq == 1 else f"every {freq} epochs" if freq else "at the end only"
        log.line(
            f"selection: no validation images (--val_fraction 0), the test set is evaluated {when}"
        )
    log.line(model_table(trainer.model))
    count = parameter_count(trainer.model)
    log.line(f"model: {count:,} trainable parameters, {count * 4 / 2**20:.2f} MiB as float32")


def _read_named(
    flag: str, config: Settings, snapshot_dir: Path, runtime: Runtime
) -> Weights | None:
    """The trained network that --init or --teacher, `flag`, names; None: neither does. Raises `UserError`."""
    name = getattr(config, flag)
    if name is None:
        return None
    path = Path(name)
    if path.suffix == ".pth" and path.resolve().parent == snapshot_dir.resolve():
        raise UserError(
            f"--{flag} {name} is in this run's --snapshot_dir, where it would be replaced; choose another"
        )
    try:
        return from_first_rank(lambda: read_trained(name), runtime)
    except UserError as problem:
        recipe = f"{path.parent.name.removeprefix('snapshots_')}.toml"
        known = {file.name for file in (Path(__file__).parent / "recipes").glob("*.toml")}
        hint = (
            f" (recipes/{recipe} trains one; --{flag} off does without)" if recipe in known else ""
        )
        raise UserError(f"--{flag}: {problem}{hint}") from None


def _start_from(
    trained: Weights, model: Network, splits: Splits, config: Settings, log: RunLog
) -> None:
    """Loads the weights that --init names, `trained`, into `model`. Raises `UserError`."""
    same = start_from(model, trained, splits.train.classes)
    head = (
        ""
        if same
        else f"; with a fresh head, for its classes are others ({', '.join(trained.classes[:3])}, ...)"
    )
    log.line(printable(f"starting from the weights {trained.source}: {_origin(trained)}{head}"))
    if same:
        _warn_of_seen("the network that --init names", trained, splits, config, log)


def _teacher_of(
    trained: Weights, splits: Splits, config: Settings, log: RunLog, runtime: Runtime
) -> Teacher:
    """The network that --teacher names, `trained`, made ready. Raises `UserError`."""
    try:
        teacher = Teacher(trained, splits, runtime)
    except UserError as problem:
        raise UserError(f"--teacher: {problem}") from None
    accuracy = (
        ""
        if trained.accuracy is None
        else f", top-1 {trained.accuracy:.2%} ({trained.accuracy_from})"
    )
    log.line(printable(f"learning from {trained.source}: {_origin(trained)}{accuracy}"))
    _warn_of_seen("the teacher", trained, splits, config, log)
    return teacher


def _origin(trained: Weights) -> str:
    return (
        f"epoch {trained.epoch} of {settings_from_dict(trained.config).epochs} on {trained.dataset}"
    )


def _warn_of_seen(
    which: str, trained: Weights, splits: Splits, config: Settings, log: RunLog
) -> None:
    """Warns of validation images that `trained` was trained on: its own split has to be this run's. Whether what it
    learnt from had seen them, nobody knows here."""
    former = settings_from_dict(trained.config)
    if may_have_seen(trained, splits, config):
        log.line(f"warning: {which} has seen the validation images, and the accuracy on them will be too high, unless it was "
                 f"trained on others: train it with the same images, --val_fraction and --limit_train")  # fmt: skip
    elif splits.val is not None and (former.init or former.teacher):
        log.line(f"warning: {which} learnt from another one, {former.init or former.teacher}: if that one has seen the "
                 f"validation images, the accuracy on them will be too high")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
