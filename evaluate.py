"""Evaluation files of a snapshot or of weights: `python evaluate.py --snapshot snapshots_complete/last.pth`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plots
from cifarnet.checkpoints.snapshots import load, read_trained
from cifarnet.checkpoints.state import weights_of
from cifarnet.checkpoints.weights import Weights, fingerprint
from cifarnet.core.commandline import build_parser, run_command
from cifarnet.core.device import Runtime, start
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.files import writable_directory
from cifarnet.core.settings import Settings, settings_from_dict
from cifarnet.images.imageset import Splits
from cifarnet.reporting.metrics import Report, build_report, predict, write_report
from data import EvalBatches, load_splits
from model import restore
from train import check_classes

FLAGS = (
    "dataset", "data_dir", "dataset_name", "limit_test", "batch_size", "amp", "amp_dtype", "device", "keep_memory",
    "plot_evaluation", "plot_dir", "data_url", "skip_bad_images", "evaluate",
)  # fmt: skip
FROM_SNAPSHOT = (
    "dataset",
    "data_dir",
    "dataset_name",
    "limit_test",
    "batch_size",
    "amp",
    "skip_bad_images",
)


def report_on(trained: Weights, splits: Splits, config: Settings, runtime: Runtime) -> Report:
    """The report on the network `trained` on the test images of `splits`. Raises `UserError` where they do not fit."""
    check_classes(trained.classes, splits.test.classes)
    model = restore(trained).to(runtime.device)
    batches = EvalBatches(
        splits.test, config.eval_batch_size, runtime, tuple(trained.mean), tuple(trained.std)
    )
    logits, labels = predict(model, batches, runtime)
    return build_report(
        logits,
        labels,
        splits.test.classes,
        dataset=splits.name,
        snapshot=trained.source,
        epoch=trained.epoch,
        weights=trained.config.get("evaluate", "raw"),
        selected_by=trained.selected_by
        + ("" if splits.name == trained.dataset else f"; trained on {trained.dataset}"),
        sha256=fingerprint(trained.model),
    )


def headline(report: Report) -> dict[str, Any]:
    """The figures of a report that fit in a line."""
    return {
        name: getattr(report, name)
        for name in ("snapshot", "epoch", "top1", "top3", "top5", "loss")
    }


def write_evaluation(
    report: Report,
    config: Settings,
    directory: Path,
    last: dict[str, Any] | None,
    best: dict[str, Any] | None,
) -> None:
    """Writes metrics.json, classification_report.txt and, with --plot_evaluation, the two pictures.

    Raises `RunError` where the disk does not take them.
    """
    try:
        write_report(report, directory, last, best)
        if config.plot_evaluation:
            plots.confusion_matrix(report, directory / "confusion_matrix.png")
            plots.class_metrics(report, directory / "class_metrics.png")
    except OSError as problem:
        raise RunError(
            f"the evaluation files could not be written to {directory} ({problem.strerror})"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command: exit code 0; 1 where the disk does not take the files, 2 for a wrong request."""
    return run_command(lambda: _evaluate(sys.argv[1:] if argv is None else argv))


def _evaluate(argv: Sequence[str]) -> None:
    about = (
        "The evaluation files of any snapshot or weights. Unless given here, data set, batch size, --amp, --evaluate and "
        "--skip_bad_images are those of the training, and the rest main.py's defaults."
    )
    parser = build_parser(about, FLAGS, defaults=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--snapshot", metavar="PATH", help="a snapshot, with the settings of its run")
    what.add_argument("--pretrained", metavar="NAME|PATH", help="a trained network: the name of a result, a file that "
                      "export.py wrote (where the images are is not among its settings: --data_dir) or a snapshot")  # fmt: skip
    given = vars(parser.parse_args(argv))
    snapshot, pretrained, which = (
        given.pop(name, None) for name in ("snapshot", "pretrained", "evaluate")
    )
    if pretrained is not None and which:
        raise UserError(
            "--evaluate chooses between the weights in a snapshot; leave it out with --pretrained"
        )
    trained = (
        read_trained(pretrained)
        if snapshot is None
        else weights_of(load(Path(snapshot)), Path(snapshot), which)
    )
    settings = settings_from_dict(trained.config)
    inherited = {name: getattr(settings, name) for name in FROM_SNAPSHOT}
    if given.get("dataset", settings.dataset) != settings.dataset:
        del inherited["data_dir"]
    if (
        "dataset" in given or "data_dir" in given
    ):  # other images: neither their name nor their number
        del inherited["dataset_name"], inherited["limit_test"]
    config = Settings(**(inherited | given))
    if config.dataset == "folder" and "data_dir" not in given | trained.config:
        raise UserError(f"--pretrained {pretrained} is of a folder of images, {trained.dataset}, and does not say where; name "
                        f"test images by --dataset folder --data_dir TREE, or --dataset cifar10")  # fmt: skip
    directory = writable_directory(config.plot_dir, "--plot_dir")
    runtime = start(config)
    splits = load_splits(config, print)
    report = report_on(trained, splits, config, runtime)
    write_evaluation(report, config, directory, None, None)
    print(
        f"{report.dataset}, {report.images} test images, {report.snapshot} (epoch {report.epoch}): {report.summary()}"
    )
    print(f"written to {directory}")


if __name__ == "__main__":
    sys.exit(main())
