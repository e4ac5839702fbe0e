"""The last phase of a run: evaluating its models, and the report."""

import os
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.calibration_images import describe_validation
from cifarnet.checkpoints.folder import find_best
from cifarnet.checkpoints.history import start_and_end
from cifarnet.checkpoints.paths import BEST, LAST, all_numbered
from cifarnet.checkpoints.snapshots import Snapshot, read_snapshot
from cifarnet.checkpoints.trained import TrainedModel
from cifarnet.core.errors import RunError, UserError, os_errors, reason
from cifarnet.core.log import clock
from cifarnet.core.machine import peak_memory
from cifarnet.core.ranks import broadcast_from_rank0, sum_over_ranks
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.reporting.label_issues import ValidationImages
from cifarnet.reporting.metrics import Report
from cifarnet.reporting.recorders import Recorders
from cifarnet.reporting.report_files import RUN_JSON, move_measured_report
from commands.calibration import calibrate, keep_temperature
from commands.evaluation import evaluate_classifier, write_evaluation
from commands.report_content import report_data, report_maps
from commands.run import Run


def report(run: Run, recorders: Recorders) -> dict[str, Any] | None:
    """Evaluates the last and the best model, writes the report, and sums the run up. Returns the
    figures of both models, on the first rank. Raises `RunError`."""
    if run.trains:
        source, snapshot = run.folders["snapshot_dir"] / LAST, run.snapshot()
    else:  # its own statistics and settings count
        source, snapshot = run.resume.source, run.resume.snapshot
    models = _models_to_report(run, source, snapshot)
    validation: dict[str, ValidationImages] = {}
    if run.splits.val is not None:
        for name, model in models.items():
            models[name], validation[name] = _calibrated(run, name, model)
    reports = {name: _evaluate(run, model, snapshot) for name, model in models.items()}
    run.data.train.close()  # the workers' processor time then counts
    processor_seconds = sum_over_ranks([sum(os.times()[:4])], run.runtime)[0]
    if run.runtime.rank:
        return None
    selected = run.settings.evaluation.select if "best" in reports else "last"
    best_epoch = run.learner.progress.best_epoch
    if run.settings.evaluation.select != selected and best_epoch:
        lost = f"--select best: no snapshot of the best epoch {best_epoch} is left"
        recorders.fail(RunError(f"{lost}; the report is on the last model"))
    for name, each in reports.items():
        run.log.line(f"{name} model, epoch {each.epoch}: {each.summary()}; {each.calibration()}")
    _say_costs(run, processor_seconds)
    _compare_with_start(run)
    try:
        _write_report(run, source, models[selected], reports, selected, validation.get(selected))
    except RunError as problem:
        recorders.fail(problem)
    run.log.line(f"report and figures, on the {selected} model: {run.folders['plot_dir']}")
    run.log.line(f"snapshots: {run.folders['snapshot_dir']}; log: {run.log.path}")
    recorders.report(reports[selected])
    if run.splits.val is not None:
        _keep_temperatures(run, models, recorders)
    return {
        name: reports[name].headline() if name in reports else None for name in ("last", "best")
    }


def _models_to_report(run: Run, source: Path, snapshot: Snapshot) -> dict[str, TrainedModel]:
    """The last model, from `snapshot`, and the best one where the run keeps it."""
    kind = run.settings.evaluation.evaluate
    last = snapshot.trained(kind)
    models = {"last": replace(last, source=str(source))}
    if run.settings.keeps_best:
        path = broadcast_from_rank0(partial(_find_best, run, source), run.runtime)
        if path:
            best = broadcast_from_rank0(lambda: read_snapshot(path), run.runtime)
            models["best"] = best.trained(kind, best=True)
    return models


def _calibrated(run: Run, name: str, model: TrainedModel) -> tuple[TrainedModel, ValidationImages]:
    """`model` with the temperature that fits the validation images, and its predictions."""
    val = run.splits.val
    about = describe_validation(len(val), run.splits.name)
    model, sentence, predictions = calibrate(model, val, about, run.settings, run.runtime)
    run.log.line(f"{name} model, epoch {model.origin.epoch}: {sentence}")
    return model, ValidationImages(val.images.numpy(), val.names, predictions)


def _keep_temperatures(run: Run, models: dict[str, TrainedModel], recorders: Recorders) -> None:
    """Writes the temperatures of `models` into the snapshots of this run."""
    for path, model in ((Path(model.source), model) for model in models.values()):
        try:
            if path.parent.resolve() != run.folders["snapshot_dir"].resolve():
                continue
            kind = read_snapshot(path).settings.evaluation.evaluate
            if kind == model.origin.weights:
                keep_temperature(model, path)
            else:
                run.log.line(f"the temperature is not kept: the run of {path} evaluates {kind}")
        except (OSError, UserError) as problem:
            unwritten = f"the temperature could not be written to {path} ({reason(problem)})"
            recorders.fail(RunError(unwritten))


def _find_best(run: Run, source: Path) -> Path | None:
    """The snapshot of the best model; None if there is none, or if it cannot be read."""
    progress = run.learner.progress
    try:
        return find_best(source, source.parent, progress.best_epoch, progress.run_id)
    except UserError as problem:
        run.log.line(f"warning: the best model is not evaluated: {problem}")
        return None


def _evaluate(run: Run, model: TrainedModel, snapshot: Snapshot) -> Report:
    facts = {
        "id": snapshot.state.run_id,
        "log": run.log.path and run.log.path.name,
        "command": shlex.join(run.command),
        "settings": run.settings.flags,
    }
    classifier = TorchClassifier(model, amp=run.settings.precision.amp)
    return evaluate_classifier(classifier, run.splits, run.settings, run.runtime, facts)


def _write_report(
    run: Run,
    source: Path,
    model: TrainedModel,
    reports: dict[str, Report],
    selected: str,
    validation: ValidationImages | None = None,
) -> None:
    """Writes the files of the report on the model `selected`, "last" or "best"."""
    directory = run.folders["plot_dir"]
    with os_errors(f"the report in {directory} could not be moved aside", kind=RunError):
        moved = move_measured_report(directory, reports[selected])
    if moved:
        run.log.line(f"moved the former report, with its corruptions.csv, to {moved}")
    facts = {"history": run.learner.progress.history, "files": _files(run, source)}
    facts["validation"] = validation
    if run.trains:
        facts["computed_on"] = f"{run.runtime.device_name}, {run.runtime.precision}"
    classifier = TorchClassifier(model).to(run.runtime.device)
    facts |= report_maps(classifier, run.splits, run.settings)
    data = report_data([model], run.splits, run.settings, run.runtime, **facts)
    write_evaluation(
        reports[selected],
        run.settings,
        directory,
        data,
        reports["last"],
        reports.get("best"),
    )


def _files(run: Run, source: Path) -> list[Path]:
    """The files of the run outside --plot_dir; only the newest numbered snapshot."""
    log = [run.log.path.with_suffix(s) for s in (".log", ".csv", RUN_JSON)] if run.log.path else []
    snapshots = (source, source.with_name(BEST), *all_numbered(source.parent)[-1:])
    return [path for path in (*log, *snapshots) if path.is_file()]


def _compare_with_start(run: Run) -> None:
    """Warns if the network is worse than the weights that --init names."""
    accuracies = start_and_end(run.learner.progress.history)
    if accuracies and accuracies[1] < accuracies[0]:
        run.log.line(
            f"warning: accuracy fell from {accuracies[0]:.2%}, that of the weights of --init, to "
            f"{accuracies[1]:.2%}; use a lower --lr or fewer --epochs"
        )


def _say_costs(run: Run, processor_seconds: float) -> None:
    history = run.learner.progress.history
    trained = sum(row.train_seconds for row in history)
    evaluated = sum(row.seconds for row in history) - trained
    run.log.line(
        f"training took {clock(trained)}, evaluation during the run {clock(evaluated)}; this "
        f"command used {clock(processor_seconds)} of processor time and "
        f"{peak_memory(run.runtime.device.type) / 2**30:.1f} GiB of memory"
    )
