"""Fits the temperature of a trained model, and keeps it in the file of the model."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch

from cifarnet.checkpoints.calibration_images import (
    describe_folder,
    describe_test_share,
    describe_validation,
)
from cifarnet.checkpoints.paths import resolve_model_path
from cifarnet.checkpoints.snapshots import load_trained, pack, read_snapshot, write_snapshot
from cifarnet.checkpoints.trained import (
    UNCALIBRATED,
    TrainedModel,
    check_classes,
    is_half,
    write_weights,
)
from cifarnet.core.device import Runtime
from cifarnet.core.errors import RunError, UserError, os_errors, printable
from cifarnet.core.files import exclusive
from cifarnet.core.log import print_line
from cifarnet.images.folder import read_folder
from cifarnet.images.imageset import ImageSet, Splits, split_holdout
from cifarnet.inference.calibration import LEAST, fit_temperature
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.reporting.metrics import collect_logits
from cifarnet.reporting.predictions import Predictions, build_predictions
from cifarnet.settings import Settings
from cifarnet.settings.data import DataSettings
from cifarnet.settings.evaluation import VALIDATION
from data import EvalBatches


def calibrate(
    model: TrainedModel,
    images: ImageSet,
    about: str,
    settings: Settings,
    runtime: Runtime,
) -> tuple[TrainedModel, str, Predictions]:
    """Fits the temperature of `model` on `images`. Returns the model, a sentence for the log, and
    the predictions.

    `about` names the images. With fewer than `LEAST` of them the model keeps its temperature. If it
    classifies all of them correctly, it becomes uncalibrated: see `fit_temperature`.
    """
    enough = len(images) >= LEAST
    model = dataclasses.replace(model, **UNCALIBRATED) if enough else model
    classifier = TorchClassifier(model, settings.precision.amp).to(runtime.device)
    batches = EvalBatches(images, settings.training.eval_batch_size, runtime)
    logits, labels = collect_logits(classifier.logits, batches, runtime)
    temperature = fit_temperature(logits, labels) if enough else None
    predictions = build_predictions(logits.double() / (temperature or 1), labels)
    if not enough:
        kept = f"the temperature stays {model.temperature:g}"
        few = f"{about} are too few, {LEAST} are needed"
        return model, f"not calibrated, {kept}: {few}", predictions
    if temperature is None:
        return model, f"not calibrated: it classifies all of {about} correctly", predictions
    model = dataclasses.replace(model, temperature=temperature, calibrated_on=about)
    return model, f"temperature {temperature:.4f}, fitted on {about}", predictions


def keep_temperature(model: TrainedModel, path: Path) -> None:
    """Writes the temperature of `model` into its file `path`: a snapshot or a weights file. Raises
    `OSError`, and `UserError` if the file holds another model by now."""
    if load_trained(str(path)).sha256 != model.sha256:
        raise UserError(f"{path} has changed in the meantime; calibrate it again")
    if path.suffix == ".pth":
        snapshot = read_snapshot(path)
        fitted = {name: getattr(model, name) for name in UNCALIBRATED}
        kept = dataclasses.replace(snapshot.model, **fitted)
        write_snapshot(pack(dataclasses.replace(snapshot, model=kept)), path)
    else:
        write_weights(model, path, half=is_half(path))


# --- evaluate.py --calibrate ---


def calibrate_file(
    model: TrainedModel,
    options: dict[str, Any],
    splits: Splits,
    settings: Settings,
    runtime: Runtime,
) -> tuple[TrainedModel, Splits]:
    """Fits the temperature of `model` and keeps it in its file, which the `options` of evaluate.py
    name.

    Its option calibrate says on which images: see `held_out_images`. Returns the calibrated model,
    and `splits` without the images that it was calibrated on. Raises `UserError`, and `RunError` if
    the file cannot be written.
    """
    path = resolve_model_path(*options["names"] or [options["snapshot"]])
    images, about, splits = held_out_images(model, options["calibrate"], splits, settings)
    model, sentence, _ = calibrate(model, images, about, settings, runtime)
    of_a_run = path.suffix == ".pth"
    with exclusive(path.parent, "--snapshot_dir") if of_a_run else contextlib.nullcontext():
        with os_errors(f"the temperature could not be written to {path}", kind=RunError):
            keep_temperature(model, path)
    print_line(f"{path}: {sentence}")
    return model, splits


def held_out_images(
    model: TrainedModel, choice: object, splits: Splits, settings: Settings
) -> tuple[ImageSet, str, Splits]:
    """Images that `model` was not trained on, in words too, and `splits` without them.

    `choice` is `VALIDATION`: the validation images of its run; a share: so much of the test images;
    or the path of a folder with other images. Raises `UserError` if those are training or test
    images.
    """
    if choice is VALIDATION:
        images = _validation_images(model, splits)
        about = describe_validation(len(images), splits.name)
    elif isinstance(choice, float):
        rest, images = split_holdout(splits.test, choice, "--calibrate")
        about = describe_test_share(len(images), len(splits.test), splits.name, choice)
        splits = dataclasses.replace(splits, test=rest)
    else:
        images = _images_in(choice, splits, settings)
        about = describe_folder(len(images), printable(Path(choice).resolve().name))
    return images, about, dataclasses.replace(splits, calibration_images=about)


def _validation_images(model: TrainedModel, splits: Splits) -> ImageSet:
    if not splits.same_normalization(model.mean, model.std):
        raise UserError(
            f"{splits.name} is not what {model.source} was trained on, so its validation images "
            f"are not known; name its images with --dataset and --data_dir"
        )
    if splits.val is None:
        raise UserError(
            f"{model.source} was trained on all {len(splits.train):,} training images of "
            f"{splits.name}: none is held out; name a folder of other images, --calibrate DIR, or "
            f"leave a share of the test images out of the report, --calibrate 0.2"
        )
    return splits.val


def _images_in(folder: str, splits: Splits, settings: Settings) -> ImageSet:
    """All images in `folder`, which are neither test nor training images. Raises `UserError`."""
    size, skip = settings.data.image_size, settings.data.skip_bad_images
    data = DataSettings("folder", folder, image_size=size, skip_bad_images=skip, test_fraction=1.0)
    dataset = read_folder(data, print_line, splits.test.classes)
    parts = [part for part in (dataset.train, dataset.val, dataset.test) if part is not None]
    images = ImageSet(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        dataset.test.classes,
    )
    check_classes(splits.test.classes, images.classes)
    pixels = {image.tobytes() for image in images.images.numpy()}
    for name, part in (("test", splits.test), ("training", splits.train)):
        repeated = sum(image.tobytes() in pixels for image in part.images.numpy())
        if repeated:
            raise UserError(
                f"--calibrate {folder}: {repeated:,} {name} images of {splits.name} are among its "
                f"images; name a folder without them"
            )
    return images
