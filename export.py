"""Writes a trained network in other formats: `python export.py --pretrained long --format onnx`.

Each file is read back and compared with the network before it takes its place. The request is
checked before torch is imported, which takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cifarnet.checkpoints.places import WEIGHTS_FILE, check_snapshot, find_trained
from cifarnet.core.commandline import build_parser, check_package, path_argument, run_command
from cifarnet.core.errors import RunError, UserError, did_you_mean
from cifarnet.core.files import writable_directory, write_atomically
from cifarnet.core.log import say
from cifarnet.core.settings import OF_THE_RESULT, Settings, settings_from_dict

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from cifarnet.checkpoints.weights import Weights
    from cifarnet.images.imageset import Splits
    from cifarnet.inference.readback import Classify

IMAGES = (
    *("dataset", "data_dir", "labels", "test_fraction", "data_url"),
    *("limit_test", "skip_bad_images"),
)


# --- the formats ---


class Source(NamedTuple):
    """What is exported."""

    weights: Weights
    splits: Splits | None  # the images of its training; None: not at hand
    figures: dict[str, Any] | None  # of its metrics.json, see `_read_metrics`; None: not given


class Format(NamedTuple):
    """A kind of export. What it writes is read back and compared with the network."""

    out: str  # the usual name of the file; of the folder, if it has no suffix
    write: Callable[[Source, Path], None]
    read: Callable[[Path], Classify]
    difference: float = float("inf")  # the largest allowed difference of a logit
    same: float = 0.0  # the least share of the images with equal top-1, in [0, 1]
    needs_images: bool = False  # to write it
    packages: Sequence[str] = ()  # optional ones, to write and read it


def _write_safetensors(source: Source, path: Path) -> None:
    from cifarnet.checkpoints.weights import write_weights

    write_weights(source.weights, path)


def _read_safetensors(path: Path) -> Classify:  # the file, or a folder with it
    from cifarnet.checkpoints.weights import read_weights
    from model import build_classifier

    return build_classifier([read_weights(str(path))])


def _write_onnx(source: Source, path: Path) -> None:
    from cifarnet.inference.onnx import write_onnx
    from model import build_classifier

    write_onnx(build_classifier([source.weights]), _metadata(source.weights), path)


def _write_int8(source: Source, path: Path) -> None:
    from cifarnet.images.imageset import limited
    from cifarnet.inference.onnx import CALIBRATION_IMAGES, write_int8
    from model import build_classifier

    weights, splits = source.weights, source.splits
    count = max(CALIBRATION_IMAGES, len(splits.train.classes))
    images = limited(splits.train, count, "--format").images
    say(f"calibrating with {len(images)} training images of {splits.name}")
    classifier = build_classifier([weights])
    if weights.accuracy is not None:
        where = f"{weights.accuracy_from}, before the quantisation"
        weights = dataclasses.replace(weights, accuracy_from=where)
    write_int8(classifier, images, _metadata(weights), path)


def _metadata(weights: Weights) -> dict[str, str]:
    """What an ONNX file says of its network, each field as JSON."""
    more = {"sha256": weights.sha256, "source": Path(weights.source).name}
    return weights.metadata() | {name: json.dumps(text) for name, text in more.items()}


def _read_onnx(path: Path) -> Classify:
    from cifarnet.inference.onnx import read_onnx

    return read_onnx(path, path.name)


def _write_hub(source: Source, path: Path) -> None:
    from cifarnet.reporting.card import write_hub
    from model import restore

    write_hub(source.weights, restore(source.weights), source.figures, path)


def _write_page(source: Source, path: Path) -> None:
    from cifarnet.inference.page import About, write_page
    from model import parameter_count, restore

    weights = source.weights
    network = restore(weights)
    facts = [
        f"{type(network).__name__}, {parameter_count(network):,} parameters",
        f"trained on {weights.dataset}, epoch {weights.epoch}",
    ]
    if weights.accuracy is not None:
        facts.append(f"top-1 accuracy on its test images: {weights.accuracy:.2%}")
    size = settings_from_dict(weights.config).image_size
    write_page(network, About(weights.classes, weights.mean, weights.std, size, facts), path)


def _read_page(path: Path) -> Classify:
    from cifarnet.inference.page import read_page

    return read_page(path)


ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "safetensors": Format(WEIGHTS_FILE, _write_safetensors, _read_safetensors, difference=0.0),
    "onnx": Format("model.onnx", _write_onnx, _read_onnx, difference=1e-3, packages=ONNX),
    "onnx-int8": Format(
        "model-int8.onnx", _write_int8, _read_onnx, same=0.97, packages=ONNX, needs_images=True
    ),
    "hub": Format("hub", _write_hub, _read_safetensors, difference=0.0),
    "page": Format("page.html", _write_page, _read_page, difference=1e-3),
}


# --- the command ---


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if a file could not be written or its answers differ from the
    network's, 2 for a wrong request."""
    return run_command(lambda: _export(sys.argv[1:] if argv is None else argv))


def _export(argv: Sequence[str]) -> None:
    options, given = _parse(argv)
    names = _formats(options.format)
    targets = _targets(names, Path(options.out))
    metrics = None if options.metrics is None else _read_metrics(Path(options.metrics))

    weights = _read(options, metrics)  # imports torch
    splits = _images(weights, given, options.pretrained, names)
    weights = dataclasses.replace(weights, config=_settings_to_keep(weights))
    writable_directory(targets[names[0]].parent, "--out")
    accuracy = "not known" if weights.accuracy is None else f"{weights.accuracy:.2%}"
    what = f"epoch {weights.epoch} on {weights.dataset}"
    size = sum(value.nbytes for value in weights.model.values()) / 1e6
    say(
        f"{weights.source}: {what}, top-1 {accuracy} ({weights.accuracy_from}); "
        f"{size:.2f} MB of weights in float32"
    )
    source = Source(weights, splits, metrics and metrics["figures"])
    with tempfile.TemporaryDirectory(prefix="cifarnet-export-") as folder:
        made = {name: Path(folder) / name / target.name for name, target in targets.items()}
        said = _make(source, made)  # all of them, before any takes its place
        for name, target in targets.items():
            _publish(made[name], target)
            say(f"{target}: {said[name]}")


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of this command, and the flags of the images that were given."""
    parser = build_parser(
        "Writes a trained network in other formats. Each file is read back and compared with the "
        "network on the test images of its training; give --dataset and --data_dir if they lie "
        "elsewhere now.",
        (*IMAGES, "evaluate"),
        defaults=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--snapshot",
        type=path_argument,
        metavar="PATH",
        help="Snapshot to export. Without --evaluate: the weights that its run evaluates.",
    )
    what.add_argument(
        "--pretrained",
        type=path_argument,
        metavar="NAME|PATH",
        help="Trained network to export: the name of a result, a .safetensors file or a .pth "
        "snapshot.",
    )
    parser.add_argument(
        "--format",
        default="safetensors",
        metavar="NAME[,NAME...]",
        help=f"What to write: {', '.join(FORMATS)}; several with commas (default: %(default)s).",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=".",
        metavar="FILE|FOLDER",
        help="File to write, or the folder to write into (default: this folder). Usual names: "
        f"{', '.join(spec.out for spec in FORMATS.values())}.",
    )
    parser.add_argument(
        "--metrics",
        type=path_argument,
        metavar="FILE",
        help="The metrics.json that main.py or evaluate.py wrote for this network. The accuracy "
        "kept with the weights is taken from there; without it, from the run's history.",
    )
    options = parser.parse_args(argv)
    given = {name: getattr(options, name) for name in IMAGES if name in options}
    if options.pretrained is not None and "evaluate" in options:
        raise UserError(
            "--evaluate chooses between the weights in a snapshot; leave it out with --pretrained"
        )
    if options.pretrained is None:
        check_snapshot(Path(options.snapshot))
    else:
        find_trained(options.pretrained)
    return options, given


def _formats(text: str) -> list[str]:
    """The names in `text`, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in FORMATS:
            hint = did_you_mean(name, FORMATS)
            raise UserError(f"--format {name!r}: use {', '.join(FORMATS)}. {hint}".rstrip(". "))
        for package in FORMATS[name].packages:
            check_package(package, f"--format {name}")
    return names


def _targets(names: Sequence[str], out: Path) -> dict[str, Path]:
    """Where each format goes: to `out` itself if that is named as its file, else into it."""
    is_folder = os.path.isdir(out)  # noqa: PTH112, Path.is_dir can raise
    suffixes = {Path(FORMATS[name].out).suffix for name in names} - {""}
    if out.suffix in suffixes:
        if len(names) > 1 or is_folder:
            why = "is a folder" if is_folder else "is one file, for several formats"
            raise UserError(f"--out {out} {why}; name a {'file' if is_folder else 'folder'}")
        return {names[0]: out}
    if out.suffix and not is_folder:
        ends = " or ".join(sorted(suffixes)) or "nothing"
        raise UserError(f"--out {out} is no folder and does not end in {ends}; choose another name")
    return {name: out / FORMATS[name].out for name in names}


def _read(options: argparse.Namespace, metrics: dict[str, Any] | None) -> Weights:
    """The network to export. Raises `UserError`."""
    from cifarnet.checkpoints.snapshots import load, read_trained
    from cifarnet.checkpoints.state import weights_of
    from cifarnet.core.device import start
    from model import restore

    start(Settings(device="cpu"))
    if options.pretrained is not None:
        weights = read_trained(options.pretrained)
    else:
        snapshot = Path(options.snapshot)
        weights = weights_of(load(snapshot), snapshot, getattr(options, "evaluate", None))
    if metrics is not None:
        weights = _with_accuracy(weights, metrics, Path(options.metrics))
    restore(weights)  # else a file could be written that no command takes
    return weights


def _images(
    weights: Weights, given: dict[str, Any], pretrained: str | None, names: Sequence[str]
) -> Splits | None:
    """The images of the training; None where they are not at hand and nothing asks for them."""
    from cifarnet.checkpoints.state import check_classes
    from cifarnet.images.cifar import CIFAR, is_at_hand
    from data import load_splits
    from evaluate import settings_for

    needed = bool(given) or any(FORMATS[name].needs_images for name in names)
    try:
        settings = settings_for([weights], given, pretrained)
        cifar = CIFAR.get(settings.dataset)
        if cifar and not needed and not is_at_hand(cifar, Path(settings.data_dir)):
            return None  # a download would be a surprise
        splits = load_splits(settings, say)
        check_classes(weights.classes, splits.test.classes)
        return splits
    except UserError:
        if needed:
            raise
        return None


# --- writing and reading back ---


def _make(source: Source, made: dict[str, Path]) -> dict[str, str]:
    """Writes each format to its path in `made` and reads it back; returns a line about each.

    Raises `RunError` if one cannot be written, or if its answers differ from the network's.
    """
    from cifarnet.inference.readback import answers, compare, random_images
    from model import build_classifier

    if source.splits is None:
        size = settings_from_dict(source.weights.config).image_size
        pixels, labels = random_images(size), None
        say("the test images of its training are not at hand (--data_dir names them)")
    else:
        test = source.splits.test
        pixels, labels = test.images, test.labels
    expected = answers(build_classifier([source.weights]), pixels)
    said = {}
    for name, path in made.items():
        spec = FORMATS[name]
        path.parent.mkdir()
        try:
            spec.write(source, path)
        except OSError as problem:
            raise RunError(f"--format {name} could not be written ({problem.strerror})") from None
        try:
            found = answers(spec.read(path), pixels)
        except (OSError, UserError, ValueError) as problem:
            raise RunError(f"--format {name} cannot be read back ({problem})") from None
        said[name] = _describe(path, expected, found, labels)
        compared = compare(expected, found)
        if not (compared.difference <= spec.difference and compared.same >= spec.same):
            raise RunError(
                f"--format {name} was not written, as its answers differ too much from the "
                f"network's (allowed: {spec.difference:g} and {spec.same:.0%}): {said[name]}"
            )
    return said


def _describe(path: Path, expected: Tensor, found: Tensor, labels: Tensor | None) -> str:
    """Size and answers of the export at `path`, in words. `labels` None: of random images."""
    from cifarnet.inference.readback import compare

    size = sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())
    compared = compare(expected, found)
    parts = [
        f"largest difference of a logit {compared.difference:.2g}",
        f"equal top-1 {compared.same:.2%}",
    ]
    if labels is not None:
        share, of_network = (
            (logits.argmax(1) == labels).double().mean().item() for logits in (found, expected)
        )
        parts.append(f"top-1 {share:.2%} (network {of_network:.2%})")
    kind = "random" if labels is None else "test"
    return f"{size / 1e6:.2f} MB; on {compared.images} {kind} images: {', '.join(parts)}"


def _publish(made: Path, target: Path) -> None:
    """Moves the file `made`, or the files in the folder `made`, to `target`. Raises `RunError`."""
    try:
        for path in sorted(made.rglob("*")) if made.is_dir() else [made]:
            place = target / path.relative_to(made)
            if path.is_dir():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, lambda file, path=path: file.write(path.read_bytes()))
    except OSError as problem:
        raise RunError(f"{target} could not be written ({problem.strerror})") from None


# --- what is kept with the weights ---


def _settings_to_keep(weights: Weights) -> dict[str, Any]:
    """The settings that bear on the result, without paths of this machine."""
    settings = {name: value for name, value in weights.config.items() if name in OF_THE_RESULT}
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
            "figures": _figures(report),
        }
    except OSError as problem:
        raise UserError(f"--metrics {path}: cannot be read ({problem.strerror})") from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        raise UserError(
            f"--metrics {path} is no metrics.json of main.py or evaluate.py; evaluate.py writes one"
        ) from None


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a metrics.json that the model card shows."""
    shares = ("top1", "top3", "top5", "loss", "calibration_error")
    figures = {name: float(report[name]) for name in shares if name in report}
    figures |= {"images": int(report["images"]), "macro_f1": float(report["macro"]["f1"])}
    if "interval" in report:  # of top-1
        figures["low"], figures["high"] = map(float, report["interval"])
    names = ("precision", "recall", "f1", "support")
    figures["per_class"] = {
        label: {name: float(row[name]) for name in names}
        for label, row in report["per_class"].items()
    }
    return figures


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
