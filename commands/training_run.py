"""A run from its settings to its report, in three phases: prepare, train, report."""

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cifarnet.checkpoints.paths import LAST
from cifarnet.checkpoints.resume import compare_settings, kept_settings, plan_resume
from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.core.arguments import check_package
from cifarnet.core.device import Runtime, init_process
from cifarnet.core.errors import RunError, UserError, os_errors, reason
from cifarnet.core.files import exclusive, existing_directory, writable_directory
from cifarnet.core.late import LateModule
from cifarnet.core.log import RunLog, print_line
from cifarnet.core.ranks import (
    Group,
    LostContactError,
    agreed_check,
    broadcast_from_rank0,
    check_equal,
)
from cifarnet.core.signals import Signals
from cifarnet.images.parts import would_read
from cifarnet.networks.build import build_model
from cifarnet.reporting.recorders import Recorders
from cifarnet.settings import Settings
from cifarnet.settings.output import FOLDERS
from cifarnet.settings.parser import build_parser
from cifarnet.training.plan import Plan
from commands.log_header import write_header
from commands.run import Request, Run
from commands.run_records import build_recorders
from commands.run_report import report
from commands.run_setup import (
    archive_old_report,
    archive_old_snapshots,
    choose_objective,
    current_run,
    find_source,
    fit_batch,
    initialize,
    read_models,
    restore_run,
    snapshots_of_others,
    snapshots_to_keep,
)
from data import augmented_examples, build_batches, load_splits
from train import Learner, fit, measure_start

plots = LateModule("plots")


def run_training(request: Request, group: Group) -> None:
    """Trains and reports, as `request` says. Raises `UserError` for what cannot be done."""
    settings = _settings(request, group)
    request = replace(request, settings=settings)
    settings.check_parts(group.ranks.world_size)
    if settings.output.tensorboard:
        check_package("tensorboard.summary.writer.event_file_writer", "--tensorboard")
    runtime = init_process(settings.precision, settings.training.seed, group.ranks)
    advice = "give --device, and --amp_dtype bf16 or --no-amp"
    check_equal(runtime.computed_on, f"the devices of the ranks differ; {advice}", runtime)
    if settings.augmentation.preview_augment:
        if runtime.rank == 0:
            _preview(settings, runtime)
        return
    with _folders(settings, runtime) as folders, RunLog(quiet=runtime.rank > 0) as log:
        run = prepare(request, runtime, folders, log, group)
        recorders = build_recorders(run, group)
        with _stop_on_signal(run, recorders, group) as signals:
            train(run, recorders, signals, group)
            with group.contact():
                figures = report(run, recorders)
            signals.check()  # Python may have dropped one
            if runtime.rank == 0:
                recorders.close("finished", figures)
            recorders.check()
            log.check()


def _settings(request: Request, group: Group) -> Settings:
    """The settings of the run; with --resume PATH those of the snapshot, under the flags."""
    resume = request.flags.get("resume")
    if resume in (None, "auto"):
        return Settings.from_flags(**request.presets | request.flags)
    snapshot = broadcast_from_rank0(lambda: read_snapshot(Path(resume)), group.ranks)
    return kept_settings(snapshot, Path(resume), request.flags)


@contextlib.contextmanager
def _folders(settings: Settings, runtime: Runtime) -> Iterator[dict[str, Path]]:
    """The folders of the run by flag, on the first rank only. Those of snapshots and report are
    locked; each log has a name of its own."""
    if runtime.rank:  # the first rank alone reads snapshots and writes
        yield dict.fromkeys(FOLDERS, Path())
        return
    if settings.data.is_folder and not settings.data.labels:
        _check_outside_images(settings)
    folders = {
        flag: writable_directory(settings.output.folder(flag), f"--{flag}") for flag in FOLDERS
    }
    with contextlib.ExitStack() as locks:
        for flag in ("snapshot_dir", "plot_dir"):
            locks.enter_context(exclusive(folders[flag], f"--{flag}"))
        yield folders


def _check_outside_images(settings: Settings) -> None:
    """Raises `UserError` if the figures of this run would be images of the next one."""
    root = existing_directory(settings.data.data_dir, "--data_dir")
    with os_errors(f"--data_dir {root} cannot be read", "change its permissions"):
        for flag in FOLDERS:
            folder = settings.output.folder(flag)
            if would_read(root, folder):
                raise UserError(
                    f"--{flag} {folder} is among the images of --data_dir {root}, where each "
                    f"folder is a class; name another folder with --{flag} or --run_dir"
                )


# --- prepare ---


def prepare(
    request: Request, runtime: Runtime, folders: dict[str, Path], log: RunLog, group: Group
) -> Run:
    """Checks everything and builds the parts of the run; then the log file begins. Raises
    `UserError`; nothing of an earlier run has changed then."""
    settings = request.settings
    log.line(f"{group.ranks.launcher} {shlex.join(request.command)}")

    # the snapshot to continue from, and trained models
    source = find_source(settings, folders["snapshot_dir"], runtime, log)
    snapshot = broadcast_from_rank0(lambda: read_snapshot(source), runtime) if source else None
    if snapshot and "amp" not in request.flags and not snapshot.settings.precision.amp:
        # a preset gives way to the run that continues
        settings, runtime = settings.replace(amp=False), replace(runtime, amp_dtype=None, note="")
    if snapshot and settings.training.batch_size is None:  # the default, fitted to the images then
        settings = settings.replace(batch_size=snapshot.settings.training.batch_size)
    changes = compare_settings(snapshot, source, settings) if snapshot else None
    finished = snapshot is not None and snapshot.epoch >= settings.training.epochs
    initial = [] if snapshot else read_models("init", settings, runtime)
    teachers = [] if finished else read_models("teacher", settings, runtime)

    # images: they may be downloaded, so all else is checked before
    splits = group.in_turn(lambda: load_splits(settings.data, log.line))
    if runtime.world_size > 1:
        parts = [part and (part.classes, part.sha256) for part in (splits.train, splits.test)]
        val = splits.val and splits.val.sha256
        differ = "the images in --data_dir differ between the machines; copy them again"
        check_equal([*parts, val], differ, runtime)
    settings = fit_batch(settings, len(splits.train), runtime, log)

    # the network, what it learns from, and how
    network = build_model(settings.network, len(splits.train.classes))
    data = build_batches(splits, settings, runtime)
    plan = Plan(settings, len(data.train), snapshot.epoch + 1 if snapshot else 1)
    current = current_run(splits, runtime, plan, teachers)
    for model in initial:
        initialize(network, model, current, log)
    objective = choose_objective(teachers, splits, current, runtime, log)
    learner = Learner(network, settings, runtime)
    resume = None
    if snapshot:
        resume = plan_resume(snapshot, source, changes, current)
        restore_run(learner, resume, log)

    run = Run(
        command=request.command,
        settings=settings,
        runtime=runtime,
        splits=splits,
        data=data,
        objective=objective,
        learner=learner,
        plan=plan,
        resume=resume,
        teacher_sha256=current.teacher_sha256,
        held_out_sha256=current.held_out_sha256,
        folders=folders,
        log=log,
    )
    # the last that may be refused; then the log file begins, and files of other runs make room
    kept = snapshots_to_keep(run) if run.trains else {}
    if runtime.rank == 0:
        others = snapshots_of_others(run) if run.trains else []
        log.open(folders["log_dir"])
        write_header(log, learner, splits, data.train.workers, request.settings)
        archive_old_snapshots(run, others, kept)
        archive_old_report(run)
    return run


# --- train ---


def train(run: Run, recorders: Recorders, signals: Signals, group: Group) -> None:
    """Trains the epochs that are left, and writes down each of them."""
    learner, batches = run.learner, run.data.train
    with signals.deferred(), group.contact():
        if run.runtime.world_size == 1:  # else all ranks stop at the same step
            batches.waiting = signals.waiting
        stop = agreed_check(signals, run.runtime)
        try:
            if run.settings.training.init and not learner.progress.history:
                measure_start(learner, run.data, run.plan, stop)
            recorders.start(learner.progress)
            fit(learner, run.objective, run.data, run.plan, recorders, stop)
        except RuntimeError:
            signals.check()  # a worker that got the signal too is no failure
            raise
    with group.contact():
        group.first_only(lambda: recorders.end(learner.progress))


@contextlib.contextmanager
def _stop_on_signal(run: Run, recorders: Recorders, group: Group) -> Iterator[Signals]:
    """Keeps what is not written yet when the run ends early, and says how to continue it."""
    first, progress = run.runtime.rank == 0, run.learner.progress
    with Signals(patient=run.runtime.world_size > 1) as signals:
        try:
            yield signals
        except (KeyboardInterrupt, LostContactError) as why:
            if first:
                with signals.deferred():  # torchrun signals again as another rank ends
                    recorders.end(progress)
                    _say_how_to_continue(run, why, group)
                    recorders.close("stopped")
            raise
        except Exception:
            if first:
                recorders.end(progress)  # a last try of what could not be written
                recorders.close("failed")
            raise


def _say_how_to_continue(run: Run, why: BaseException, group: Group) -> None:
    """Logs why the run ended early, and the command that continues it."""
    progress, command = run.learner.progress, run.command
    stepped = run.learner.first_step_seconds > 0
    has_trained = stepped or progress.epoch < run.settings.training.epochs
    last = run.folders["snapshot_dir"] / LAST
    if has_trained and last.exists():  # else the same command does it again
        words = build_parser("", ["resume"]).parse_known_args(command)[1]  # without --resume
        resume = run.settings.output.resume
        by_path = resume not in (None, "auto")  # its flags say only what changed
        command = [*words, "--resume", str(last) if by_path else "auto"]
    is_done = progress.epoch >= run.settings.training.epochs
    left = "all epochs are done; write the report with:" if is_done else "continue with:"
    run.log.line(f"{why}: ended after epoch {progress.epoch}; {left}")
    run.log.line(f"  {group.ranks.launcher} {shlex.join(command)}")


# --- preview ---


def _preview(settings: Settings, runtime: Runtime) -> None:
    """Plots eight training images, each with eight random augmentations of the policy."""
    path = Path(settings.augmentation.preview_augment)
    splits = load_splits(settings.data, print_line)
    failure = f"--preview_augment {path}: cannot"
    with os_errors(f"{failure} write it", "name another file"):
        try:
            examples = augmented_examples(splits, settings, runtime.device)
            plots.augmentations(*examples, settings.augmentation.in_words, path)
        except (OSError, UserError):
            raise
        except Exception as problem:
            raise RunError(f"{failure} draw it ({reason(problem)})") from None
    print_line(f"written to {path}")
