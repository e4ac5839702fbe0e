"""A network and images make a report. A command too: `python evaluate.py --snapshot PATH`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnet.checkpoints.places import LAST, check_snapshot, find_all_trained
from cifarnet.core.commandline import path_argument, run_command
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.files import writable_directory
from cifarnet.core.log import say
from cifarnet.settings import Settings, settings_from_dict
from cifarnet.settings.output import SNAPSHOTS
from cifarnet.settings.parser import add_tta, build_parser, check_evaluate

if TYPE_CHECKING:  # torch takes seconds to import: the functions below import what they use
    from cifarnet.checkpoints.weights import Weights
    from cifarnet.core.device import Runtime
    from cifarnet.images.imageset import Splits
    from cifarnet.inference.classifier import Classifier
    from cifarnet.reporting.html import Material
    from cifarnet.reporting.metrics import Report

FLAGS = (
    *("dataset", "data_dir", "labels", "test_fraction", "dataset_name", "data_url"),
    *("limit_test", "skip_bad_images"),
    *("batch_size", "amp", "amp_dtype", "device", "keep_memory", "evaluate"),
    *("plot_evaluation", "report", "run_dir", "plot_dir"),
)
OF_THE_RUN = (
    *("limit_train", "val_fraction"),  # what is left over is the same
    *("dataset", "data_dir", "labels", "test_fraction", "dataset_name", "limit_test"),
    *("skip_bad_images", "image_size", "batch_size", "amp"),
)


def report_on(
    classifier: Classifier,
    trained: Sequence[Weights],
    splits: Splits,
    settings: Settings,
    runtime: Runtime,
    run: dict[str, Any] | None = None,
) -> Report:
    """The report on `classifier`, made of the networks `trained`, on the test images of `splits`.

    `run` says which run one network comes from: its id, command, log and settings.
    Raises `UserError` where they do not fit.
    """
    from cifarnet.checkpoints.state import check_classes
    from cifarnet.reporting.metrics import about_network, build_report, predict
    from data import EvalBatches
    from model import trained_parameters

    check_classes(classifier.classes, splits.test.classes)
    batches = EvalBatches(splits.test, settings.training.eval_batch_size, runtime)
    logits, labels = predict(classifier.to(runtime.device), batches, runtime)
    members = []
    for one in trained:
        elsewhere = "" if splits.name == one.dataset else f"; trained on {one.dataset}"
        about = {
            "snapshot": one.source,
            "epoch": one.epoch,
            "weights": one.config.get("evaluate", "raw"),
            "selected_by": one.selected_by + elsewhere,
            "sha256": one.sha256,
        }
        members.append(about)
    return build_report(
        logits,
        labels,
        splits.test.classes,
        dataset=splits.name,
        **about_network(members),
        parameters=sum(map(trained_parameters, trained)),
        tta=classifier.tta,
        run=run or {},
    )


def page_material(
    trained: Sequence[Weights], splits: Splits, settings: Settings, runtime: Runtime, **known: Any
) -> Material:
    """What report.html shows beside the report on the networks `trained`.

    `splits` hold the test images, `settings` name them. `known` are fields of `Material`: of the
    run, where there is one. Training and device of several networks are left out.
    """
    import numpy as np

    from cifarnet.reporting.html import Material
    from data import augmented_examples

    if len(trained) == 1:
        (alone,) = trained
        of_training = settings_from_dict(alone.config)
        shows = settings.evaluation.report and splits.same_normalization(alone.mean, alone.std)
        if shows and of_training.augmentation.augments:
            originals, versions = augmented_examples(splits, of_training, runtime.device)
            known["augmented"] = np.stack([originals, *versions], axis=1)
        known.setdefault("computed_on", alone.config.get("computed_on", ""))
    return Material(
        images=splits.test.images.numpy(),
        official=settings.data.dataset == "cifar10" and not settings.data.limit_test,
        paths=splits.test.paths,
        **known,
    )


def write_evaluation(
    report: Report,
    settings: Settings,
    directory: Path,
    material: Material,
    last: Report | None = None,
    best: Report | None = None,
) -> None:
    """Writes metrics.json, classification_report.txt and predictions.csv.

    With --plot_evaluation also two pictures, with --report a page that shows `material` too. `last`
    and `best` are the reports of a run's last and best model, where there are such. Raises
    `RunError` where the disk does not take the files.
    """
    from cifarnet.reporting.html import write_page
    from cifarnet.reporting.report_files import write_report

    try:
        figures = write_report(report, directory, material.paths, last, best)
        if settings.evaluation.plot_evaluation:
            import plots  # matplotlib takes a second to import

            plots.confusion_matrix(report, directory / "confusion_matrix.png")
            plots.class_metrics(report, directory / "class_metrics.png")
        if settings.evaluation.report:
            write_page(report, figures, material, directory)
    except OSError as problem:
        raise RunError(
            f"the evaluation files could not be written to {directory} ({problem.strerror})"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 where the disk does not take the files, 2 for a wrong request."""
    return run_command(lambda: _evaluate(sys.argv[1:] if argv is None else argv))


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of this command, with `names` of trained networks; and the flags given."""
    parser = build_parser(
        "Writes the evaluation files of any snapshot or weights. Data set, batch size, --amp, "
        "--evaluate and --skip_bad_images are those of the training, unless given here. Other "
        "flags have main.py's defaults.",
        FLAGS,
        defaults=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--snapshot",
        type=path_argument,
        metavar="PATH",
        help="Snapshot, with its run's settings (with --run_dir alone: the run's last.pth).",
    )
    what.add_argument(
        "--pretrained",
        metavar="NAME|PATH,...",
        help="Trained network: the name of a result, a snapshot, or a file that export.py wrote "
        "(add --data_dir: such a file keeps no paths). Several, separated by commas, are an "
        "ensemble: their probabilities are averaged, and the flags are those of the first.",
    )
    add_tta(parser)
    given = vars(parser.parse_args(argv))
    own = ("snapshot", "pretrained", "tta", "evaluate")
    options = argparse.Namespace(**{name: given.pop(name, None) for name in own})
    check_evaluate(options.evaluate, options.pretrained)
    if options.pretrained is not None:
        options.names = find_all_trained(options.pretrained)
        return options, given
    if options.snapshot is None:
        if "run_dir" not in given:
            raise UserError("name a network: --snapshot PATH, --pretrained NAME or --run_dir DIR")
        options.snapshot = str(Path(given["run_dir"]) / SNAPSHOTS / LAST)
    check_snapshot(Path(options.snapshot))
    return options, given


def _evaluate(argv: Sequence[str]) -> None:
    options, given = _parse(argv)

    from cifarnet.checkpoints.snapshots import load
    from cifarnet.checkpoints.state import weights_of
    from data import load_splits
    from model import build_classifier, read_network

    known: dict[str, Any] = {}
    run = {"id": None, "log": None, "command": shlex.join(["evaluate.py", *argv])}
    if options.snapshot is None:
        trained = list(map(read_network, options.names))
    else:
        snapshot = Path(options.snapshot)
        state = load(snapshot)
        run["id"], known["history"] = state.run_id, state.history
        trained = [weights_of(state, snapshot, options.evaluate)]
    classifier = build_classifier(trained, options.tta, given.get("amp"))
    settings = settings_for(trained, given, options.pretrained)
    directory = writable_directory(settings.output.folder("plot_dir"), "--plot_dir")
    runtime = _start(settings, asked_for_amp="amp" in given)
    splits = load_splits(settings, say)
    _warn_of_known_images(trained, splits, settings)
    run["settings"] = trained[0].config if len(trained) == 1 else {}
    report = report_on(classifier, trained, splits, settings, runtime, run)
    _move_other_report(directory, report)
    material = page_material(trained, splits, settings, runtime, **known)
    write_evaluation(report, settings, directory, material)
    about = f"{report.images} test images, {report.network()} (epoch {report.epoch})"
    say(f"{report.dataset}, {about}: {report.summary()}")
    say(f"written to {directory}")


def _start(settings: Settings, asked_for_amp: bool) -> Runtime:
    """The device and precision; a CPU that only emulates bf16 uses float32 unless asked."""
    from cifarnet.core.device import SLOW_AMP, init_process, without_amp

    runtime = init_process(settings.precision, settings.training.seed)
    if runtime.emulates_bf16 and asked_for_amp:
        say(SLOW_AMP)
    elif runtime.emulates_bf16:
        say("in float32, not with --amp as in training: this CPU has no bf16 instructions")
        return without_amp(runtime)
    return runtime


def _warn_of_known_images(trained: Sequence[Weights], splits: Splits, settings: Settings) -> None:
    """Warns if test images that were drawn from a folder may have been trained on."""
    tree = Path(settings.data.data_dir)
    drawn = settings.data.dataset == "folder" and not (tree / "train").is_dir()
    if drawn and not all(splits.same_normalization(one.mean, one.std) for one in trained):
        say(
            f"warning: the images to train on in {tree} are not those of the training; if the "
            f"network learnt from this folder, it knows some of the test images"
        )


def _move_other_report(directory: Path, report: Report) -> None:
    """Moves the report of another network or other images aside. Raises `RunError`."""
    from cifarnet.reporting.report_files import move_other_report

    try:
        moved = move_other_report(directory, report)
    except OSError as problem:
        raise RunError(
            f"the report in {directory} could not be moved aside ({problem.strerror})"
        ) from None
    if moved:
        say(f"moved the report of another network or other images to {moved}")


def settings_for(
    trained: Sequence[Weights], given: dict[str, object], pretrained: str | None
) -> Settings:
    """The flags `given`, laid over the settings of the (first) training. Raises `UserError`."""
    first = trained[0]
    of_training = settings_from_dict(first.config)
    inherited = {name: of_training.flags[name] for name in OF_THE_RUN}
    inherited["amp"] = any(settings_from_dict(one.config).precision.amp for one in trained)
    if given.get("dataset", of_training.data.dataset) != of_training.data.dataset:
        del inherited["data_dir"]
    if "dataset" in given or "data_dir" in given:  # other images have another name and number
        for name in ("dataset_name", "limit_test", "limit_train", "val_fraction"):
            del inherited[name]
        if "data_dir" in given or given["dataset"] != of_training.data.dataset:
            del inherited["labels"]
    settings = Settings.from_flags(**(inherited | given))
    if settings.data.dataset == "folder" and "data_dir" not in given | first.config:
        raise UserError(
            f"--pretrained {pretrained} learnt from a folder of images, {first.dataset}, and "
            f"does not say where; add --dataset folder --data_dir TREE, or --dataset cifar10"
        )
    return settings


if __name__ == "__main__":
    sys.exit(main())
