"""Exports a trained model: writes each format, reads it back, and compares the answers."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.paths import resolve_model_path, split_names
from cifarnet.checkpoints.snapshots import load_trained, read_snapshot
from cifarnet.checkpoints.trained import TrainedModel, check_classes
from cifarnet.core.device import init_process
from cifarnet.core.errors import RunError, UserError, os_errors
from cifarnet.core.files import writable_directory, write_atomically
from cifarnet.core.log import print_line
from cifarnet.export.exported_figures import (
    cautions,
    metrics_beside,
    read_metrics,
    threshold_rows,
    with_accuracy,
)
from cifarnet.images.cifar import CIFAR, is_at_hand
from cifarnet.images.imageset import Splits
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.inference.readback import RANDOM_IMAGES, compare, compute_logits, random_images, top1
from cifarnet.settings import OF_THE_RESULT
from cifarnet.settings.precision import PrecisionSettings
from commands.evaluation import evaluation_settings
from commands.export_formats import FORMATS, Source
from data import load_splits


def run_export(options: dict[str, Any], flags: dict[str, Any], targets: dict[str, Path]) -> None:
    """Runs export.py after its flags are read.

    `options` are snapshot, pretrained, evaluate and metrics; `flags` those of the images that the
    user gave. `targets` is where each format goes. Raises `UserError`, and `RunError` if a file
    cannot be written or its answers differ from the network's.
    """
    metrics = None if options["metrics"] is None else read_metrics(Path(options["metrics"]))
    init_process(PrecisionSettings(device="cpu"))
    model = _load(options, metrics)
    calibrated = [name for name in targets if FORMATS[name].needs_images]
    splits = _images(model, flags, needed=bool(calibrated))
    if calibrated and not len(splits.train):
        raise UserError(
            f"--format {calibrated[0]} is calibrated with training images, but {splits.name} has "
            f"none; name a --data_dir that has"
        )
    model = _without_paths(model)
    writable_directory(next(iter(targets.values())).parent, "--out")
    origin = model.origin
    accuracy = "not known" if origin.accuracy is None else f"{origin.accuracy:.2%}"
    size = sum(value.nbytes for value in model.weights.values()) / 1e6
    print_line(
        f"{model.source}: epoch {origin.epoch} on {origin.dataset}, top-1 {accuracy} "
        f"({origin.accuracy_from}); {size:.2f} MB of weights in float32"
    )
    source = Source(model, splits, metrics)
    if "page" in targets:
        source = source._replace(**_trust(model, options, metrics))
    with tempfile.TemporaryDirectory(prefix="cifarnet-export-") as folder:
        drafts = {name: Path(folder) / name / target.name for name, target in targets.items()}
        messages = _write(source, drafts)  # all of them, before any takes its place
        for name, target in targets.items():
            _publish(drafts[name], target)
            print_line(f"{target}: {messages[name]}")


def _load(options: dict[str, Any], metrics: dict[str, Any] | None) -> TrainedModel:
    """The model to export. Raises `UserError`."""
    if options["pretrained"] is not None:
        model = load_trained(options["pretrained"])
    else:
        model = read_snapshot(Path(options["snapshot"])).trained(options["evaluate"])
    if metrics is not None:
        model = with_accuracy(model, metrics, Path(options["metrics"]))
    model.build()  # else a file could be written that no command takes
    return model


def _trust(
    model: TrainedModel, options: dict[str, Any], metrics: dict[str, Any] | None
) -> dict[str, Any]:
    """What the page says on thresholds, and on when not to trust the network, as fields of
    `Source`: from --metrics or from beside the weights."""
    weights = resolve_model_path(options["pretrained"] or options["snapshot"])
    try:
        metrics = metrics or metrics_beside(weights)
        rows = threshold_rows(model, metrics)
        return {"thresholds": rows, "cautions": cautions(metrics)}
    except UserError as problem:
        print_line(f"the page has no thresholds: {problem}")
        return {}


def _images(model: TrainedModel, flags: dict[str, Any], needed: bool) -> Splits | None:
    """The images of the training; None where they are not available and nothing needs them, as a
    line then says. `flags` that name images ask for them too. Raises `UserError`."""
    needed = needed or bool(flags)
    try:
        settings = evaluation_settings([model], flags)
        cifar = CIFAR.get(settings.data.dataset)
        if cifar and not needed and not is_at_hand(cifar, Path(settings.data.data_dir)):
            # a download would be a surprise
            print_line("no test images: comparing on random ones (--data_dir names the images)")
            return None
        splits = load_splits(settings.data, print_line, model.classes)
        check_classes(model.classes, splits.test.classes)
        return splits
    except UserError as problem:
        if needed:
            raise
        print_line(f"no test images: comparing on random ones ({problem})")
        return None


def _without_paths(model: TrainedModel) -> TrainedModel:
    """`model` with the settings that bear on the result, without paths of this machine."""
    settings = {name: v for name, v in model.origin.settings.items() if name in OF_THE_RESULT}
    for flag in ("init", "teacher", "labels"):
        value = settings.get(flag) or ""
        paths = [Path(name) for name in (split_names(value) if flag == "teacher" else [value])]
        if any(path.is_absolute() or ".." in path.parts for path in paths):
            settings[flag] = ",".join(path.name for path in paths)
    return dataclasses.replace(model, origin=dataclasses.replace(model.origin, settings=settings))


def _write(source: Source, drafts: dict[str, Path]) -> dict[str, str]:
    """Writes each format to its path in `drafts` and reads it back; returns a line about each.
    Raises `RunError` if one cannot be written, or if its answers differ from the network's."""
    if source.splits is None:
        pixels, labels = random_images(RANDOM_IMAGES, source.model.image_size), None
    else:
        pixels, labels = source.splits.test.images, source.splits.test.labels
    expected = compute_logits(TorchClassifier(source.model).logits, pixels)
    messages = {}
    for name, path in drafts.items():
        form = FORMATS[name]
        path.parent.mkdir()
        with os_errors(f"--format {name} could not be written", kind=RunError):
            form.write(source, path)
        try:
            logits = compute_logits(form.read(path), pixels)
        except (OSError, UserError, ValueError) as problem:
            raise RunError(f"--format {name} cannot be read back ({problem})") from None
        difference, same = compare(expected, logits)
        parts = [f"largest difference of a logit {difference:.2g}", f"equal top-1 {same:.2%}"]
        if labels is not None:
            ours, theirs = (f"{top1(each, labels):.2%}" for each in (logits, expected))
            parts.append(f"top-1 {ours} (network {theirs}, in float32)")
        files = (part for part in [path, *path.rglob("*")] if part.is_file())
        size = sum(part.stat().st_size for part in files) / 1e6
        kind = "random" if labels is None else "test"
        messages[name] = f"{size:.2f} MB; on {len(pixels)} {kind} images: {', '.join(parts)}"
        if not (difference <= form.difference and same >= form.same):
            raise RunError(
                f"--format {name} was not written, because its outputs differ too much from the "
                f"network's ({form.limit}): {messages[name]}"
            )
    return messages


def _publish(draft: Path, target: Path) -> None:
    """Moves the file `draft`, or the files in the folder `draft`, to `target`. Raises `RunError`"""
    with os_errors(f"{target} could not be written", kind=RunError):
        for path in sorted(draft.rglob("*")) if draft.is_dir() else [draft]:
            place = target / path.relative_to(draft)
            if path.is_dir():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, lambda file, path=path: file.write(path.read_bytes()))
