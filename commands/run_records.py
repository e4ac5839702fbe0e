"""What a run writes down: its recorders, and its facts for run.json."""

from functools import partial
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.history import Progress
from cifarnet.core.late import LateModule
from cifarnet.core.machine import versions
from cifarnet.core.ranks import Group
from cifarnet.networks.build import parameter_count
from cifarnet.networks.cost import multiply_adds
from cifarnet.reporting import recorders as kinds
from cifarnet.reporting.report_files import CURVES
from cifarnet.reporting.run_record import RunJson
from cifarnet.reporting.tensorboard import TensorBoard
from cifarnet.settings import Settings
from commands.run import Run
from data import augmented_examples

plots = LateModule("plots")  # matplotlib may fail: the training goes on


def build_recorders(run: Run, group: Group) -> kinds.Recorders:
    """The recorders of `run`: they write something down after each epoch."""
    settings, log, plan = run.settings, run.log, run.plan
    recorders = [
        kinds.Snapshots(run.folders["snapshot_dir"], settings, run.snapshot),
        kinds.HistoryCsv(log),
        RunJson(log, _facts(run)),
        kinds.LogLine(log, settings, plan.cost, lambda: run.learner.first_step_seconds),
    ]
    if settings.evaluation.plot_training:
        for name, draw in zip(CURVES, (_draw_curves, _draw_schedule), strict=True):
            path = run.folders["plot_dir"] / name
            recorders.append(kinds.Curves(settings, path, partial(draw, run, path)))
    if settings.output.tensorboard:
        examples = partial(augmented_examples, run.splits, settings, run.runtime.device)
        recorders.append(
            TensorBoard(
                log,
                settings,
                lambda: plots.mosaic(*examples()[:2]),
                lambda report: plots.confusion_pixels(report),
            )
        )
    return kinds.Recorders(recorders, log, group.first_only, run.folders.values())


def _draw_curves(run: Run, path: Path, progress: Progress) -> None:
    title = f"epoch {progress.epoch} of {run.plan.epochs}, {run.splits.name}"
    if run.settings.augmentation.augments:
        title = f"training images are augmented; {title}"
    names = _measured_in_training(run.settings)
    labels = (f"train, {name}" if name else "train" for name in names)
    plots.training_curves(progress.history, title, path, *labels, progress.comparable_after)


def _measured_in_training(settings: Settings) -> tuple[str, str]:
    """What loss and accuracy of the training are measured against, for the legends; empty: the
    labels."""
    training = settings.training
    words = ["smoothed"] * (training.smoothing > 0)
    words += ["weighted"] * (training.class_weights != "none")
    labels = f"{', '.join(words)} labels" if words else ""
    loss = "from the teacher" if training.teacher else labels
    if settings.augmentation.mixes:
        return f"{loss or 'labels'}, mixed", "larger share"
    return loss, ""


def _draw_schedule(run: Run, path: Path, progress: Progress) -> None:
    plan = run.plan
    plots.learning_rate_schedule(plan.rate, plan.total_steps, plan.epochs, progress.epoch, path)


def _facts(run: Run) -> dict[str, Any]:
    """The facts of `run` for run.json: see docs/reading-a-run.md."""
    settings, runtime, splits, network = run.settings, run.runtime, run.splits, run.learner.network
    size, resume = settings.data.image_size, run.resume
    return {
        "command": run.command,
        "settings": settings.flags,
        "versions": versions(),
        "device": {
            "type": runtime.device.type,
            "name": runtime.device_name,
            "threads": runtime.threads,
            "precision": runtime.precision,
            "world_size": runtime.world_size,
        },
        "dataset": {
            "name": splits.name,
            "train": len(splits.train),
            "val": len(splits.val) if splits.val is not None else 0,
            "test": len(splits.test),
            "classes": list(splits.train.classes),
            "mean": list(splits.mean),
            "std": list(splits.std),
        },
        "model": {
            "name": type(network).__name__,
            "parameters": parameter_count(network),
            "multiply_adds": multiply_adds(network, size),
            "image_size": size,
        },
        "resumed_from": resume and {"snapshot": str(resume.source), "epoch": resume.snapshot.epoch},
        "initialized_from": settings.training.init,
        "teacher": settings.training.teacher,
        "snapshot_dir": str(run.folders["snapshot_dir"]),
        "plot_dir": str(run.folders["plot_dir"]),
    }
