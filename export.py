"""Writes a trained network in other formats: `python export.py --pretrained long --format onnx`.

Each file is read back and compared with the network before it takes its place. The request is
checked before torch is imported, which takes seconds.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnet.checkpoints.places import check_snapshot, find_trained
from cifarnet.core.commandline import check_package, path_argument, run_command
from cifarnet.core.errors import RunError, UserError, did_you_mean
from cifarnet.core.files import writable_directory, write_atomically
from cifarnet.core.log import say
from cifarnet.reporting.exported_figures import Metrics, read_metrics, with_accuracy
from cifarnet.settings import OF_THE_RESULT, settings_from_dict
from cifarnet.settings.parser import build_parser, check_evaluate
from cifarnet.settings.precision import PrecisionSettings
from formats import FORMATS, Source

if TYPE_CHECKING:
    import argparse

    from cifarnet.checkpoints.weights import Weights
    from cifarnet.images.imageset import Splits
    from cifarnet.inference.readback import Agreement

IMAGES = (
    *("dataset", "data_dir", "labels", "test_fraction", "data_url"),
    *("limit_test", "skip_bad_images"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if a file could not be written or its answers differ from the
    network's, 2 for a wrong request."""
    return run_command(lambda: _export(sys.argv[1:] if argv is None else argv))


def _export(argv: Sequence[str]) -> None:
    options, given = _parse(argv)
    names = _formats(options.format)
    targets = _targets(names, Path(options.out))
    metrics = None if options.metrics is None else read_metrics(Path(options.metrics))

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
    source = Source(weights, splits, metrics and metrics.figures)
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
    check_evaluate(getattr(options, "evaluate", None), options.pretrained)
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


def _read(options: argparse.Namespace, metrics: Metrics | None) -> Weights:
    """The network to export. Raises `UserError`."""
    from cifarnet.checkpoints.snapshots import load, read_trained
    from cifarnet.checkpoints.state import weights_of
    from cifarnet.core.device import init_process
    from model import restore

    init_process(PrecisionSettings(device="cpu"))
    if options.pretrained is not None:
        weights = read_trained(options.pretrained)
    else:
        snapshot = Path(options.snapshot)
        weights = weights_of(load(snapshot), snapshot, getattr(options, "evaluate", None))
    if metrics is not None:
        weights = with_accuracy(weights, metrics, Path(options.metrics))
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
        cifar = CIFAR.get(settings.data.dataset)
        if cifar and not needed and not is_at_hand(cifar, Path(settings.data.data_dir)):
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
    from cifarnet.inference.readback import answers, compare, random_images, top1
    from model import build_classifier

    if source.splits is None:
        size = settings_from_dict(source.weights.config).data.image_size
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
        compared = compare(expected, found)
        top1s = None if labels is None else (top1(found, labels), top1(expected, labels))
        said[name] = _describe(path, compared, top1s)
        if not (compared.difference <= spec.difference and compared.same >= spec.same):
            raise RunError(
                f"--format {name} was not written, as its answers differ too much from the "
                f"network's (allowed: {spec.difference:g} and {spec.same:.0%}): {said[name]}"
            )
    return said


def _describe(path: Path, compared: Agreement, top1s: tuple[float, float] | None) -> str:
    """Size and answers of the export at `path`, in words.

    `top1s` are its top-1 accuracy and the network's; None: the images were random.
    """
    size = sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())
    parts = [
        f"largest difference of a logit {compared.difference:.2g}",
        f"equal top-1 {compared.same:.2%}",
    ]
    if top1s:
        parts.append(f"top-1 {top1s[0]:.2%} (network {top1s[1]:.2%}, in float32)")
    kind = "test" if top1s else "random"
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


def _settings_to_keep(weights: Weights) -> dict[str, Any]:
    """The settings that bear on the result, without paths of this machine."""
    settings = {name: value for name, value in weights.config.items() if name in OF_THE_RESULT}
    for flag in ("init", "teacher"):
        path = Path(settings.get(flag) or ".")
        if path.is_absolute() or ".." in path.parts:
            settings[flag] = path.name
    return settings


if __name__ == "__main__":
    sys.exit(main())
