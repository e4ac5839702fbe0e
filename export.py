"""Writes a snapshot's weights: `python export.py --snapshot snapshots_complete/last.pth`.

The request is checked before torch is imported, which takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnet.checkpoints.places import WEIGHTS_FILE, check_snapshot
from cifarnet.core.commandline import build_parser, path_argument, run_command
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.files import writable_directory
from cifarnet.core.log import say
from cifarnet.core.settings import FLAGS

if TYPE_CHECKING:
    from cifarnet.checkpoints.weights import Weights


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if the file could not be written, 2 for a wrong request."""
    return run_command(lambda: _export(sys.argv[1:] if argv is None else argv))


def _export(argv: Sequence[str]) -> None:
    parser = build_parser(
        "Writes a snapshot's weights as a safetensors file for predict.py and evaluate.py.",
        ("evaluate",),
        defaults=False,
    )
    parser.add_argument(
        "--snapshot",
        type=path_argument,
        required=True,
        metavar="PATH",
        help="Snapshot to export. Without --evaluate: the weights that its run evaluates.",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=WEIGHTS_FILE,
        metavar="FILE",
        help="File to write (default: %(default)s).",
    )
    parser.add_argument(
        "--metrics",
        type=path_argument,
        metavar="FILE",
        help="The metrics.json that main.py or evaluate.py wrote for this snapshot. The accuracy "
        "kept with the weights is taken from there; without it, from the run's history.",
    )
    options = parser.parse_args(argv)
    snapshot, out = Path(options.snapshot), Path(options.out)
    check_snapshot(snapshot)
    if out.suffix != ".safetensors" or os.path.isdir(out):  # noqa: PTH112, Path.is_dir can raise
        raise UserError(f"--out {out} is no name for a safetensors file; end it in .safetensors")
    metrics = None if options.metrics is None else _read_metrics(Path(options.metrics))

    # These import torch.
    from cifarnet.checkpoints.snapshots import load
    from cifarnet.checkpoints.state import weights_of
    from cifarnet.checkpoints.weights import write_weights
    from model import restore

    weights = weights_of(load(snapshot), snapshot, getattr(options, "evaluate", None))
    if metrics is not None:
        weights = _with_accuracy(weights, metrics, Path(options.metrics))
    weights = dataclasses.replace(weights, config=_settings_to_keep(weights))
    restore(weights)  # else a file could be written that no command takes
    writable_directory(out.parent, "--out")
    try:
        write_weights(weights, out)
    except OSError as problem:
        raise RunError(f"{out} could not be written ({problem.strerror})") from None
    accuracy = "not known" if weights.accuracy is None else f"{weights.accuracy:.2%}"
    what = f"epoch {weights.epoch} on {weights.dataset}"
    say(f"{out}: {what}, top-1 {accuracy} ({weights.accuracy_from})")


def _settings_to_keep(weights: Weights) -> dict[str, Any]:
    """The settings that bear on the result, without paths of this machine."""
    settings = {
        name: value
        for name, value in weights.config.items()
        if name in FLAGS and FLAGS[name].metadata["on_resume"] != "any"
    }
    for flag in ("init", "teacher"):
        path = Path(settings.get(flag) or ".")
        if path.is_absolute() or ".." in path.parts:
            settings[flag] = path.name
    return settings


def _read_metrics(path: Path) -> dict[str, Any]:
    """The parts of the metrics.json `path` that are needed. Raises `UserError`."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        accuracy = float(report["top1"])
        if report.get("members") or report.get("tta", "none") != "none":
            raise UserError(
                f"--metrics {path} is of an ensemble, or of a network with --tta; evaluate the "
                f"network alone, without --tta"
            )
        if not 0 <= accuracy <= 1:
            raise ValueError
        return {
            "accuracy": accuracy,
            "images": int(report["images"]),
            "classes": list(report["per_class"]),
            "about": {name: report[name] for name in ("epoch", "dataset", "weights")},
            "sha256": report["sha256"],
        }
    except OSError as problem:
        raise UserError(f"--metrics {path}: cannot be read ({problem.strerror})") from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        raise UserError(
            f"--metrics {path} is no metrics.json of main.py or evaluate.py; evaluate.py writes one"
        ) from None


def _with_accuracy(weights: Weights, metrics: dict[str, Any], path: Path) -> Weights:
    """`weights` with the accuracy in `metrics`, read from `path`.

    Raises `UserError` if those are of another model.
    """
    from cifarnet.checkpoints.weights import fingerprint

    kind = weights.config.get("evaluate", "raw")
    about = {"epoch": weights.epoch, "dataset": weights.dataset, "weights": kind}
    if (metrics["about"], metrics["classes"]) != (about, weights.classes):
        theirs, ours = (
            ", ".join(f"{name} {value}" for name, value in facts.items())
            for facts in (metrics["about"], about)
        )
        raise UserError(
            f"--metrics {path} is of another model: {theirs}; the weights to export are: {ours}"
        )
    if metrics["sha256"] != fingerprint(weights.model):
        raise UserError(
            f"--metrics {path} is of other weights, perhaps of another run; evaluate.py writes one"
        )
    source = f"{path.name}, {metrics['images']} images"
    return dataclasses.replace(weights, accuracy=metrics["accuracy"], accuracy_from=source)


if __name__ == "__main__":
    sys.exit(main())
