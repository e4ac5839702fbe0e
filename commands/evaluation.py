"""Evaluates a classifier on test images, and writes the report. A run uses the first functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.calibration_images import MAY_BE_FITTED_HERE, may_include_test_images
from cifarnet.checkpoints.paths import resolve_model_path
from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.checkpoints.trained import ModelInfo, check_classes
from cifarnet.comparing.run_files import read_history, read_record
from cifarnet.core.device import Runtime, init_process
from cifarnet.core.errors import RunError, UserError, os_errors
from cifarnet.core.files import exclusive, exists, writable_directory
from cifarnet.core.late import LateModule
from cifarnet.core.log import print_line
from cifarnet.images.imageset import Splits
from cifarnet.images.no_class import no_class_pictures
from cifarnet.inference.classifier import Classifier, TorchClassifier
from cifarnet.inference.load import combine, load_classifier
from cifarnet.reporting.corruptions import CorruptionRow, mean_accuracy
from cifarnet.reporting.html import ReportData, write_page
from cifarnet.reporting.label_issues import ValidationImages, write_label_issues
from cifarnet.reporting.metrics import Report, build_report, collect_logits, describe_network
from cifarnet.reporting.predictions import build_predictions
from cifarnet.reporting.report_files import (
    LABEL_ISSUES,
    PAGE,
    Attempts,
    corruptions_beside,
    move_other_report,
    write_report,
)
from cifarnet.settings import Settings
from cifarnet.settings.evaluation import VALIDATION
from commands.calibration import calibrate_file
from commands.corrupting import measure_corruptions
from commands.report_content import report_data, report_maps
from data import EvalBatches, load_splits

plots = LateModule("plots")  # matplotlib may fail: all other files are still written

OF_THE_RUN = (  # flags whose values are those of the training, unless the user gives others
    *("limit_train", "val_fraction"),  # they decide which training images were held out
    *("dataset", "data_dir", "labels", "test_fraction", "dataset_name", "limit_test"),
    *("skip_bad_images", "image_size", "batch_size", "amp"),
)


def evaluate_classifier(
    classifier: Classifier,
    splits: Splits,
    settings: Settings,
    runtime: Runtime,
    run: dict[str, Any] | None = None,
) -> Report:
    """Evaluates `classifier` on the test images of `splits`. `run` says which run the model
    comes from: its id, command, log and settings. With --report the classifier is also tried on
    pictures of no class."""
    classify = classifier.to(runtime.device).logits
    batch_size, no_class = settings.training.eval_batch_size, {}
    logits, labels = collect_logits(
        classify, EvalBatches(splits.test, batch_size, runtime), runtime
    )
    if settings.evaluation.report:
        pictures = no_class_pictures(splits.test.images)
        others, kinds = collect_logits(
            classify, EvalBatches(pictures, batch_size, runtime), runtime
        )
        highest = others.double().softmax(dim=1).amax(dim=1)
        no_class = {kind: highest[kinds == i].numpy() for i, kind in enumerate(pictures.classes)}
    network = describe_network(classifier.infos, splits.name)
    calibrated_on = network["calibrated_on"]
    may_be_fitted_here = calibrated_on != splits.calibration_images and may_include_test_images(
        calibrated_on, splits.name
    )
    return build_report(
        logits,
        labels,
        splits.test.classes,
        no_class,
        dataset=splits.name,
        **network,
        may_be_fitted_here=may_be_fitted_here,
        images_sha256=splits.test.sha256,
        tta=classifier.tta,
        run=run or {},
    )


def write_evaluation(
    report: Report,
    settings: Settings,
    directory: Path,
    data: ReportData,
    last: Report | None = None,
    best: Report | None = None,
    corruptions: Sequence[CorruptionRow] = (),
) -> None:
    """Writes metrics.json, classification_report.txt, predictions.csv, predictions.npz and
    label_issues.csv.

    Removes the page and pictures of a report on another network, temperature or images. With
    --plot_evaluation also two pictures, with --report a page that shows `data` too, and with
    `corruptions` their table. `last` and `best` are the reports of a run's last and best model, if
    they exist. Raises `RunError` if a file cannot be written; the others are written then.
    """
    files = Attempts(directory)
    figures = write_report(report, files, data.names, last, best, corruptions)
    with files.write(LABEL_ISSUES) as path:
        classes = list(report.per_class)
        write_label_issues(report.predictions, classes, data.names, path, data.validation)
    if settings.evaluation.plot_evaluation:
        with files.write("confusion_matrix.png") as path:
            plots.confusion_matrix(report, path)
        with files.write("class_metrics.png") as path:
            plots.class_metrics(report, path)
    if settings.evaluation.report:
        with files.write(PAGE):
            write_page(report, figures, data, directory)
    files.check()


# --- evaluate.py ---


def run_evaluation(options: dict[str, Any], flags: dict[str, Any]) -> None:
    """Runs evaluate.py after its flags are read.

    `options` are command, tta, evaluate, calibrate and corruptions, and names of models or a
    snapshot; `flags` those of `Settings` that the user gave. Raises `UserError` and `RunError`.
    """
    classifier, run_id, facts = _load(options, flags.get("amp"))
    infos = classifier.infos
    if options["calibrate"] is VALIDATION:
        # The images may lie in another --data_dir by now, but are split as in the run.
        of_run = infos[0].settings.flags
        flags = {name: of_run[name] for name in ("val_fraction", "limit_train")} | flags
    settings = evaluation_settings(infos, flags)
    directory = writable_directory(settings.output.folder("plot_dir"), "--plot_dir")
    with exclusive(directory, "--plot_dir"):
        runtime = init_process(settings.precision, settings.training.seed)
        if runtime.note:
            print_line(runtime.note)
        splits = load_splits(settings.data, print_line, classifier.classes)
        check_classes(classifier.classes, splits.test.classes)
        _warn_of_training_images(infos, splits, settings)
        if options["calibrate"] is not None:
            calibrated, splits = calibrate_file(infos[0], options, splits, settings, runtime)
            infos = [calibrated]
            classifier = combine([TorchClassifier(calibrated, flags.get("amp"))], options["tta"])
        run = {"id": run_id, "log": None, "command": options["command"]}
        run["settings"] = infos[0].origin.settings if len(infos) == 1 else {}
        report = evaluate_classifier(classifier, splits, settings, runtime, run)
        corruptions: Sequence[CorruptionRow] = []
        if options["corruptions"]:
            corruptions = measure_corruptions(
                classifier, splits.test, report.top1, settings, runtime
            )
        elif len(options["names"]) == 1:
            corruptions = _corruptions_beside(resolve_model_path(options["names"][0]), report)
        _move_other_report(directory, report)
        _print_figures(report, corruptions, "" if options["corruptions"] else ", measured earlier")
        facts |= report_maps(classifier, splits, settings)
        facts["validation"] = _validation(classifier, splits, settings, runtime)
        data = report_data(infos, splits, settings, runtime, **facts)
        write_evaluation(report, settings, directory, data, corruptions=corruptions)
        print_line(f"written to {directory}")


def _load(
    options: dict[str, Any], amp: bool | None
) -> tuple[Classifier, str | None, dict[str, Any]]:
    """The classifier that `options` name, the id of its run if it is in a snapshot, and what is
    known of its training as fields of `ReportData`. `amp`: see `TorchClassifier`."""
    if options["names"]:
        classifier = load_classifier(options["names"], options["tta"], amp)
        alone = len(classifier.infos) == 1
        weights = resolve_model_path(options["names"][0])
        return classifier, None, _training_beside(weights, classifier.infos[0]) if alone else {}
    snapshot = read_snapshot(Path(options["snapshot"]))
    trained = snapshot.trained(options["evaluate"])
    if options["calibrate"] and trained.sha256 != snapshot.trained().sha256:
        raise UserError("--calibrate fits the weights that the run evaluates; leave --evaluate out")
    classifier = combine([TorchClassifier(trained, amp)], options["tta"])
    return classifier, snapshot.state.run_id, {"history": snapshot.state.history}


def _print_figures(report: Report, corruptions: Sequence[CorruptionRow], when: str) -> None:
    """`when` says that the corruptions were measured by an earlier command."""
    about = f"{report.images} test images, {report.network()} (epoch {report.epoch})"
    print_line(f"{report.dataset}, {about}: {report.summary()}")
    print_line(report.calibration())
    if report.may_be_fitted_here:
        print_line(f"warning: {MAY_BE_FITTED_HERE}")
    if corruptions:
        print_line(f"mean accuracy under corruption: {mean_accuracy(corruptions):.2%}{when}")


def _training_beside(weights: Path, info: ModelInfo) -> dict[str, Any]:
    """The history and the files of the training, as fields of `ReportData`, if they lie beside
    `weights`, as in results/: a history that ends with the epoch of `info`."""
    log, table, record = map(weights.with_name, ("training.log", "history.csv", "run.json"))
    try:
        history = read_history(table) if exists(table) else []
        machine = read_record(record).machine if exists(record) else None
    except UserError as problem:
        print_line(f"warning: the report has no curves: {problem}")
        return {}
    if not history or history[-1].epoch != info.origin.epoch:
        return {}
    files = [path for path in (log, table, record, weights) if exists(path)]
    computed_on = machine or info.origin.computed_on
    return {"history": history, "files": files, "computed_on": computed_on}


def _corruptions_beside(weights: Path, report: Report) -> Sequence[CorruptionRow]:
    """`corruptions_beside`; none, with a warning, where the table is damaged."""
    try:
        return corruptions_beside(weights, report)
    except UserError as problem:
        print_line(f"warning: the report has no corruptions: {problem}")
        return []


def evaluation_settings(infos: Sequence[ModelInfo], flags: dict[str, Any]) -> Settings:
    """The `flags` that the user gave, over the settings of the (first) training. Raises
    `UserError`."""
    first = infos[0]
    of_training = first.settings
    inherited = {name: of_training.flags[name] for name in OF_THE_RUN}
    inherited["amp"] = any(info.origin.settings.get("amp") for info in infos)
    other_data = flags.get("dataset", inherited["dataset"]) != inherited["dataset"]
    if other_data:
        del inherited["data_dir"]
    if {"dataset", "data_dir", "labels"} & flags.keys():  # a data set of another name and number
        for name in ("dataset_name", "limit_test", "limit_train", "val_fraction"):
            del inherited[name]
        if "data_dir" in flags or other_data:
            del inherited["labels"]
    settings = Settings.from_flags(**(inherited | flags))
    if settings.data.is_folder and "data_dir" not in flags | first.origin.settings:
        raise UserError(
            f"{first.source} was trained on a folder of images, {first.origin.dataset}, and does "
            f"not say where; add --dataset folder --data_dir TREE, or --dataset cifar10"
        )
    return settings


def _validation(
    classifier: Classifier, splits: Splits, settings: Settings, runtime: Runtime
) -> ValidationImages | None:
    """The validation images of the run that trained `classifier`, if they are known, with its
    predictions. The members of an ensemble may have held out others."""
    val, (info, *others) = splits.val, classifier.infos
    if val is None or others or not splits.same_normalization(info.mean, info.std):
        if info.origin.settings.get("val_fraction"):
            print_line(
                f"{LABEL_ISSUES} lists test images only: the validation images are not known"
            )
        return None
    batches = EvalBatches(val, settings.training.eval_batch_size, runtime)
    logits, labels = collect_logits(classifier.to(runtime.device).logits, batches, runtime)
    predictions = build_predictions(logits, labels)
    return ValidationImages(val.images.numpy(), val.names, predictions)


def _warn_of_training_images(
    infos: Sequence[ModelInfo], splits: Splits, settings: Settings
) -> None:
    """Warns if test images that were drawn from a folder may have been trained on."""
    same_images = all(splits.same_normalization(info.mean, info.std) for info in infos)
    if splits.drawn_test and not same_images:
        print_line(
            f"warning: the images in {settings.data.data_dir} are not those of the training; "
            f"if the network was trained on this folder, some test images may have been training "
            f"images"
        )


def _move_other_report(directory: Path, report: Report) -> None:
    """Moves the report of another network, temperature or images aside. Raises `RunError`."""
    with os_errors(f"the report in {directory} could not be moved aside", kind=RunError):
        moved = move_other_report(directory, report)
    if moved:
        print_line(f"moved the report of another network, temperature or images to {moved}")
