"""A snapshot's evaluation files: `python evaluate.py --snapshot snapshots_complete/best_model.pth`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import plots
from batches import EvalBatches
from config import RunError, TrainConfig, build_parser, config_from_dict
from data import Splits, load_splits
from metrics import Report, build_report, predict, write_report
from model import build_model
from runtime import Runtime, run_command, start, writable_directory
from snapshots import BEST, TrainState, load
from train import load_weights

FLAGS = (
    "dataset", "data_dir", "dataset_name", "limit_test", "batch_size", "amp", "amp_dtype", "device", "keep_memory",
    "plot_evaluation", "plot_dir", "data_url", "skip_bad_images", "evaluate",
)  # fmt: skip
FROM_SNAPSHOT = (
    "dataset", "data_dir", "dataset_name", "limit_test", "batch_size", "amp", "skip_bad_images", "evaluate",
)  # fmt: skip


def report_on(
    model: nn.Module, state: TrainState, splits: Splits, snapshot: Path, config: TrainConfig, runtime: Runtime
) -> Report:
    """The report on `model`, which `state` describes and `snapshot` holds, over the test images of `splits`."""
    batches = EvalBatches(splits.test, config.batch_size, runtime.device, tuple(state.mean), tuple(state.std))
    logits, labels = predict(model, batches, runtime)
    how = _selected_by(state, snapshot) if splits.name == state.dataset else f"trained on {state.dataset}"
    if config.evaluate == "ema":
        how = f"averaged weights, {how}"
    return build_report(logits, labels, splits.test.classes, splits.name, str(snapshot), state.epoch, how)


def _selected_by(state: TrainState, snapshot: Path) -> str:
    """How the snapshot's epoch was chosen, and what part the test set had in it."""
    config = config_from_dict(state.config)
    validated = config.val_fraction > 0
    looked = "during the run" if config.eval_freq else "at the end only"
    if snapshot.name == BEST:
        return "best by " + ("validation accuracy" if validated else f"test accuracy, evaluated {looked}")
    return "chosen without test images" if validated else f"not selected; the test set was evaluated {looked}"


def load_model(snapshot: Path, splits: Splits, config: TrainConfig, runtime: Runtime) -> tuple[nn.Module, TrainState]:
    """The network that `snapshot` holds, on the device, and the rest of it. Raises `UserError`."""
    state = load(snapshot)
    model = build_model(config, len(state.classes))
    load_weights(model, state, splits.test.classes, config.evaluate)
    return model.to(runtime.device), state


def headline(report: Report) -> dict[str, Any]:
    """The figures of a report that fit in a line."""
    return {name: getattr(report, name) for name in ("snapshot", "epoch", "top1", "top3", "top5", "loss")}


def write_evaluation(
    report: Report, config: TrainConfig, directory: Path, last: dict[str, Any] | None, best: dict[str, Any] | None
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
        raise RunError(f"the evaluation files could not be written to {directory} ({problem.strerror})") from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command: exit code 0, or 2 with one line on stderr for a wrong request."""
    return run_command(lambda: _evaluate(sys.argv[1:] if argv is None else argv))


def _evaluate(argv: Sequence[str]) -> None:
    parser = build_parser("The evaluation files of any snapshot.", FLAGS, defaults=False)
    parser.add_argument("--snapshot", required=True, metavar="PATH", help="the snapshot; unless given here, its data set, "
                        "batch size and --amp are those it was trained with, and the rest main.py's defaults")  # fmt: skip
    given = vars(parser.parse_args(argv))
    snapshot = Path(given.pop("snapshot"))
    trained = config_from_dict(load(snapshot).config)
    inherited = {name: getattr(trained, name) for name in FROM_SNAPSHOT}
    if "dataset" in given or "data_dir" in given:
        inherited["dataset_name"] = None  # the name of other images
    config = TrainConfig(**(inherited | given), ema_decay=trained.ema_decay)
    directory = writable_directory(config.plot_dir, "--plot_dir")
    runtime = start(config)
    splits = load_splits(config, print)
    model, state = load_model(snapshot, splits, config, runtime)
    report = report_on(model, state, splits, snapshot, config, runtime)
    write_evaluation(report, config, directory, None, None)
    tops = ", ".join(f"top-{k} {share:.4f}" for k, share in report.tops().items())
    print(
        f"{report.dataset}, {report.images} test images, {snapshot} (epoch {report.epoch}): {tops}, loss {report.loss:.4f}"
    )
    print(f"written to {directory}")


if __name__ == "__main__":
    sys.exit(main())
