"""One run from its settings to its report: the parts, wired together.

`main.py` reads the flags before torch is imported; then it calls `run_training`.
"""

import contextlib
import dataclasses
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cifarnet.checkpoints.places import BEST, LAST, all_numbered
from cifarnet.checkpoints.resume import Present, Resumption, check_changes, kept_settings, make_room
from cifarnet.checkpoints.snapshots import find_best, load
from cifarnet.checkpoints.state import Computed, Progress, TrainState, weights_of
from cifarnet.checkpoints.weights import Weights
from cifarnet.core.commandline import check_package
from cifarnet.core.device import Runtime, init_process, peak_memory
from cifarnet.core.errors import RunError
from cifarnet.core.files import exclusive, naming_failures, writable_directory
from cifarnet.core.log import RunLog, clock, say
from cifarnet.core.ranks import (
    Group,
    LostContactError,
    agreed_check,
    from_first_rank,
    sum_over_ranks,
)
from cifarnet.core.signals import Signals
from cifarnet.images.imageset import Splits
from cifarnet.reporting import recorders as kinds
from cifarnet.reporting.metrics import Report
from cifarnet.reporting.recorders import Recorders
from cifarnet.reporting.tensorboard import TensorBoard
from cifarnet.settings import Settings
from cifarnet.settings.parser import build_parser
from cifarnet.training.objective import Objective
from data import Batches, augmented_examples, build_batches, load_splits
from evaluate import page_material, report_on, write_evaluation
from log_head import write_head
from model import build_classifier, build_model
from starting import (
    adapted_settings,
    choose_objective,
    find_source,
    fit_batch,
    present_run,
    read_trained_networks,
    start_from_init,
    take_over,
)
from train import Learner, Plan, fit


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of one run, wired together."""

    settings: Settings
    runtime: Runtime
    splits: Splits
    data: Batches
    learner: Learner
    plan: Plan
    present: Present
    log: RunLog
    snapshot_dir: Path
    plot_dir: Path
    command: list[str]

    def recorders(self, objective: Objective, group: Group) -> Recorders:
        """The listeners that write something down after each epoch, snapshots first."""
        settings, log = self.settings, self.log
        chosen = [
            kinds.Snapshots(self.snapshot_dir, settings, self.state),
            kinds.HistoryCsv(log),
            kinds.LogLine(log, settings, self.plan.cost, lambda: self.learner.first_step_seconds),
        ]
        if settings.evaluation.plot_training:
            draw = partial(self._draw_curves, objective)
            chosen.append(kinds.Curves(settings, self.plot_dir, draw))
        if settings.output.tensorboard:
            chosen.append(TensorBoard(log, settings, self._draw_augmented, self._draw_confusion))
        return kinds.Recorders(chosen, log, group.first_only)

    def state(self) -> TrainState:
        """The complete state after the epochs finished so far."""
        done, plan, here = self.learner.progress.epoch, self.plan, self.present
        computed = Computed(here.computed_on, here.world_size, here.teacher_sha256)
        return TrainState(
            **self.learner.state(),
            scheduler={"step": plan.first_step(done + 1), "total_steps": plan.total_steps},
            config=self.settings.flags | vars(computed),
            classes=list(self.splits.train.classes),
            mean=list(self.splits.mean),
            std=list(self.splits.std),
            dataset=self.splits.name,
        )

    def _draw_curves(self, objective: Objective, progress: Progress) -> None:
        import plots  # matplotlib takes a second to import

        plan = self.plan
        title = f"{self.splits.name}: epoch {progress.epoch} of {plan.epochs}"
        names = objective.loss_name, objective.accuracy_name
        names = (f"train, {name}" if name else "train" for name in names)
        path = self.plot_dir / "training_curves.png"
        plots.training_curves(progress.history, title, path, *names)
        path = self.plot_dir / "learning_rate_schedule.png"
        plots.learning_rate_schedule(plan.rate, plan.total_steps, plan.epochs, progress.epoch, path)

    def _draw_augmented(self) -> np.ndarray:
        import plots

        return plots.mosaic(*augmented_examples(self.splits, self.settings, self.runtime.device))

    def _draw_confusion(self, report: Report) -> np.ndarray:
        import plots

        return plots.confusion_pixels(report)

    def report(self, resumption: Resumption | None) -> Report | None:
        """Evaluates the last and the best model, writes the report, and sums the run up.

        Returns the report, on the first rank.
        """
        settings, runtime, which = self.settings, self.runtime, self.settings.evaluation.evaluate
        if resumption and resumption.finished:  # its own statistics and settings count
            source, state = resumption.source, resumption.state
        else:
            source, state = self.snapshot_dir / LAST, self.state()
        about = {
            "id": state.run_id,
            "log": self.log.path and self.log.path.name,
            "command": shlex.join(self.command),
            "settings": settings.flags,
        }

        def report_of(weights: Weights) -> Report:
            classifier = build_classifier([weights], amp=settings.precision.amp)
            return report_on(classifier, [weights], self.splits, settings, runtime, about)

        trained = weights_of(state, source, which)
        last = report_of(trained)
        best = None
        if settings.keeps_best:
            find = partial(find_best, source, source.parent, state.best_epoch, state.run_id)
            path = from_first_rank(find, runtime)
            if path:
                of_best = from_first_rank(lambda: load(path), runtime)
                weights = weights_of(of_best, path, which, best=True)
                best = report_of(weights)
        self.data.train.close()  # the workers' processor time then counts
        used = sum_over_ranks([sum(os.times()[:4])], runtime)[0]
        if runtime.rank:
            return None
        chosen = best if settings.evaluation.select == "best" and best else last
        known = {"history": state.history, "files": self._files(source)}
        if not (resumption and resumption.finished):
            known["computed_on"] = f"{runtime.device_name}, {runtime.precision}"
        material = page_material([trained], self.splits, settings, runtime, **known)
        write_evaluation(chosen, settings, self.plot_dir, material, last, best)
        for name, report in (("last", last), ("best", best)):
            if report:
                self.log.line(f"{name} model, epoch {report.epoch}: {report.summary()}")
        self._say_costs(used)
        what = "best" if chosen is best else "last"
        self.log.line(f"report and figures, on the {what} model: {self.plot_dir}")
        self.log.line(f"snapshots: {self.snapshot_dir}; log: {self.log.path}")
        return chosen

    def _files(self, source: Path) -> list[Path]:
        """The files of the run outside --plot_dir; only the newest numbered snapshot."""
        log = [self.log.path, self.log.path.with_suffix(".csv")] if self.log.path else []
        best = source.with_name(BEST)
        return [
            path
            for path in (*log, source, best, *all_numbered(source.parent)[-1:])
            if path.is_file()
        ]

    def _say_costs(self, processor_seconds: float) -> None:
        history = self.learner.progress.history
        trained = sum(row.train_seconds for row in history)
        others = sum(row.seconds for row in history) - trained
        self.log.line(
            f"training took {clock(trained)}, evaluation during the run {clock(others)}; this "
            f"command used {clock(processor_seconds)} of processor time and "
            f"{peak_memory(self.runtime.device.type) / 2**30:.1f} GiB of memory"
        )


def run_training(
    settings: Settings, given: dict[str, Any], command: list[str], group: Group
) -> None:
    """Trains and reports, as `settings` say. Raises `UserError` for what cannot be done.

    `given` are the flags that the user set, `command` is what the user typed.
    """
    if settings.output.resume not in (None, "auto"):  # flags that are not given keep their values
        state = from_first_rank(lambda: load(Path(settings.output.resume)), group.ranks)
        settings = kept_settings(state, Path(settings.output.resume), given)
        if settings.output.tensorboard:
            check_package("tensorboard", "--tensorboard")
    settings.check_parts(group.ranks.world_size)
    runtime = init_process(settings.precision, settings.training.seed, group.ranks)
    first = runtime.rank == 0  # it alone reads snapshots, writes and speaks
    if settings.augmentation.preview_augment:
        if first:
            _preview(settings, runtime)
        return
    log_dir, snapshot_dir, plot_dir = (
        writable_directory(settings.output.folder(flag), f"--{flag}") if first else Path()
        for flag in ("log_dir", "snapshot_dir", "plot_dir")
    )
    lock = exclusive(snapshot_dir, "--snapshot_dir") if first else contextlib.nullcontext()
    with RunLog(quiet=not first) as log, lock:
        log.line(f"{group.ranks.launcher} {shlex.join(command)}")
        source = find_source(settings, snapshot_dir, runtime, log)
        state = from_first_rank(lambda: load(source), runtime) if source else None
        settings, runtime = adapted_settings(settings, runtime, given, state, log)
        if state:
            check_changes(state, source, settings)
        finished = state is not None and state.epoch >= settings.training.epochs
        trained = read_trained_networks(settings, state is None, not finished, runtime)

        # images: they may be downloaded, so all else is checked first
        splits = group.in_turn(lambda: load_splits(settings, log.line))
        settings = fit_batch(settings, len(splits.train), runtime, log)

        # the network, what it learns from, and how
        network = build_model(settings.network, len(splits.train.classes))
        data = build_batches(splits, settings, runtime)
        plan = Plan(settings, len(data.train))
        present = present_run(splits, runtime, plan, trained.get("teacher"))
        if "init" in trained:
            start_from_init(network, trained["init"], present, log)
        objective = choose_objective(trained.get("teacher"), splits, present, runtime, log)
        learner = Learner(network, settings, runtime)
        resumption = take_over(learner, state, source, present, log) if state else None

        # nothing was refused: the log file begins
        about = learner, plan, present, log, snapshot_dir, plot_dir, command
        run = Run(settings, runtime, splits, data, *about)
        if first:
            log.open(log_dir)
            write_head(log, learner, splits, data.train.workers)
        if not finished:
            _make_room(run, resumption)
        _train_and_report(run, objective, resumption, group)


def _train_and_report(
    run: Run, objective: Objective, resumption: Resumption | None, group: Group
) -> None:
    """Trains the epochs that are left, then reports; or says how to go on after a stop."""
    learner, data, runtime = run.learner, run.data, run.runtime
    recorders = run.recorders(objective, group)
    with Signals(patient=runtime.world_size > 1) as signals:
        try:
            with signals.deferred(), group.contact():
                if runtime.world_size == 1:  # else all ranks stop at the same step
                    data.train.waiting = signals.waiting
                recorders.start(learner.progress)
                stop = agreed_check(signals, runtime)
                try:
                    fit(learner, objective, data, run.plan, recorders, stop)
                except RuntimeError:
                    signals.check()  # a worker that got the signal too is no failure
                    raise
            with group.contact():
                group.first_only(lambda: recorders.end(learner.progress))
                report = run.report(resumption)
                if report:
                    recorders.report(report)
            signals.check()  # Python may have dropped one
            recorders.check()
            run.log.check()
        except (KeyboardInterrupt, LostContactError) as why:
            if runtime.rank == 0:
                with signals.deferred():  # torchrun signals again as another rank ends
                    recorders.end(learner.progress)
                    _say_how_to_go_on(run, why, group)
            raise
        except RunError:
            if runtime.rank == 0:
                recorders.end(learner.progress)  # a last try of what could not be written
            raise


def _make_room(run: Run, resumption: Resumption | None) -> None:
    """Moves other runs' snapshots aside, and brings the best one so far along."""
    progress, settings, best = run.learner.progress, run.settings, None
    if resumption and settings.keeps_best and progress.best_epoch:
        source, directory = resumption.source, run.snapshot_dir
        find = partial(find_best, source, directory, progress.best_epoch, progress.run_id)
        best = from_first_rank(find, run.runtime)
        if not best:
            run.log.line(
                f"no snapshot of the best epoch {progress.best_epoch} is beside {source}: "
                f"the best starts anew"
            )
            progress.best_accuracy, progress.best_epoch = 0.0, 0
    if run.runtime.rank == 0:
        make_room(run.snapshot_dir, resumption, best, run.log.line)


def _say_how_to_go_on(run: Run, why: BaseException, group: Group) -> None:
    """Logs why the run ended early, and the command that goes on."""
    progress, command = run.learner.progress, run.command
    stepped = run.learner.first_step_seconds > 0
    trained_here = stepped or progress.epoch < run.settings.training.epochs
    if trained_here and (run.snapshot_dir / LAST).exists():  # else the same command does it again
        others = build_parser("", ["resume"]).parse_known_args(command)[1]  # without --resume
        by_path = run.settings.output.resume not in (
            None,
            "auto",
        )  # its flags say only what changed
        command = [*others, "--resume", str(run.snapshot_dir / LAST) if by_path else "auto"]
    run.log.line(f"{why}: ended after epoch {progress.epoch}; go on with:")
    run.log.line(f"  {group.ranks.launcher} {shlex.join(command)}")


def _preview(settings: Settings, runtime: Runtime) -> None:
    """Plots eight training images, each with eight random augmentations of the policy."""
    import plots

    path = Path(settings.augmentation.preview_augment)
    splits = load_splits(settings, say)
    with naming_failures("--preview_augment", path):
        plots.augmentations(*augmented_examples(splits, settings, runtime.device), path)
    say(f"written to {path}")
