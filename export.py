"""A snapshot's weights for use elsewhere: `python export.py --snapshot snapshots_complete/last.pth`."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cifarnet.checkpoints.snapshots import load
from cifarnet.checkpoints.state import weights_of
from cifarnet.checkpoints.weights import FILE, Weights, fingerprint, write_weights
from cifarnet.core.commandline import build_parser, run_command
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.files import writable_directory
from cifarnet.core.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """The command: exit code 0, 1 where the disk did not take the file, 2 for a wrong request."""
    return run_command(lambda: _export(sys.argv[1:] if argv is None else argv))


def _export(argv: Sequence[str]) -> None:
    parser = build_parser(
        "A snapshot's weights as a safetensors file, which predict.py and evaluate.py take.",
        ("evaluate",),
        defaults=False,
    )
    parser.add_argument("--snapshot", required=True, metavar="PATH", help="the snapshot; of its weights, those that its "
                        "run evaluates, unless --evaluate says otherwise")  # fmt: skip
    parser.add_argument(
        "--out", default=FILE, metavar="FILE", help="the file to write (default: %(default)s)"
    )
    parser.add_argument("--metrics", metavar="FILE", help="the metrics.json that main.py or evaluate.py wrote of "
                        "this snapshot; without it, the accuracy kept with the weights is that of the run's history")  # fmt: skip
    given = parser.parse_args(argv)
    snapshot, out = Path(given.snapshot), Path(given.out)
    weights = weights_of(load(snapshot), snapshot, getattr(given, "evaluate", None))
    if given.metrics is not None:
        weights = _with_accuracy_of(weights, Path(given.metrics))
    if out.suffix != ".safetensors" or os.path.isdir(out):  # noqa: PTH112, for Path.is_dir raises for some names
        raise UserError(f"--out {out}: it will be a safetensors file; end its name in .safetensors")
    writable_directory(out.parent, "--out")
    kept = {
        spec.name for spec in dataclasses.fields(Settings) if spec.metadata["on_resume"] != "change"
    }
    settings = {name: value for name, value in weights.config.items() if name in kept}
    for flag in ("init", "teacher"):
        path = Path(settings.get(flag) or ".")
        if path.is_absolute() or ".." in path.parts:
            settings[flag] = path.name  # no place on this machine
    try:
        write_weights(dataclasses.replace(weights, config=settings), out)
    except OSError as problem:
        raise RunError(f"{out} could not be written ({problem.strerror})") from None
    accuracy = "not known" if weights.accuracy is None else f"{weights.accuracy:.2%}"
    print(
        f"{out}: epoch {weights.epoch} on {weights.dataset}, top-1 {accuracy} ({weights.accuracy_from})"
    )


def _with_accuracy_of(weights: Weights, path: Path) -> Weights:
    """`weights` with the accuracy in the metrics.json `path`. Raises `UserError` where that is of another model."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        accuracy, classes = float(report["top1"]), list(report["per_class"])
        about = {name: report[name] for name in ("epoch", "dataset", "weights")}
        images, sha256 = (
            int(report["images"]),
            report.get("sha256"),
        )  # which earlier versions did not write
    except OSError as problem:
        raise UserError(f"--metrics {path}: cannot be read ({problem.strerror})") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"--metrics {path} is no metrics.json as main.py and evaluate.py write it"
        ) from None
    own = {
        "epoch": weights.epoch,
        "dataset": weights.dataset,
        "weights": weights.config.get("evaluate", "raw"),
    }
    if (about, classes) != (own, weights.classes):
        said, meant = (
            ", ".join(f"{name} {value}" for name, value in facts.items()) for facts in (about, own)
        )
        raise UserError(
            f"--metrics {path} is of another model: {said}; those to export are: {meant}"
        )
    if sha256 not in (None, fingerprint(weights.model)):
        raise UserError(
            f"--metrics {path} is of other weights, those of another run perhaps; evaluate.py writes one"
        )
    return dataclasses.replace(
        weights, accuracy=accuracy, accuracy_from=f"{path.name}, {images} images"
    )


if __name__ == "__main__":
    sys.exit(main())
