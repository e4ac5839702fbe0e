"""Your own images, sorted into class folders or named by a CSV file."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cifarnet.core.errors import RunError, UserError, printable, reason
from cifarnet.core.files import existing_directory
from cifarnet.images.decoding import decoded_images
from cifarnet.images.finding import Say
from cifarnet.images.imageset import Dataset, ImageSet, holdout_mask
from cifarnet.images.labels import read_labels
from cifarnet.images.layout import Layout, read_layout
from cifarnet.settings.data import DataSettings

# Spaces and joiners are not escaped: the report opens the files by these paths. macOS writes the
# second one into the names of screenshots.
KEPT_IN_PATHS = "\u00a0\u202f\u2009\u3000\u200c\u200d"


def read_folder(settings: DataSettings, say: Say, classes: tuple[str, ...] = ()) -> Dataset:
    """Reads the images under --data_dir.

    Class names are those of the folders or of --labels, sorted. Where there is no test folder,
    --test_fraction of each class becomes the test images. Decoded images are kept beside the
    class folders, and used again until a file changes. The images know their files.
    `classes` are those of a network to evaluate: training images, and test images of some classes,
    may then be missing. Raises `UserError` for another layout, and `RunError` for an unreadable
    image without --skip_bad_images.
    """
    root = existing_directory(settings.data_dir, "--data_dir")
    try:
        if settings.labels:
            layout = read_labels(root, Path(settings.labels), say, classes)
        else:
            layout = read_layout(root, say, classes)
        files = [file.path for file in layout.files]
        labels = torch.tensor([file.label for file in layout.files])
        parts = _parts(layout, labels, settings, say, bool(classes))
        images, bad = decoded_images(files, settings, say)
    except OSError as problem:
        raise UserError(
            f"cannot read {problem.filename} ({reason(problem)}); repair or remove it"
        ) from None
    parts[bad] = ""
    paths = [printable(os.path.relpath(file, root), kept=KEPT_IN_PATHS) for file in files]
    paths = np.array(paths, dtype=object)
    everything = ImageSet(torch.from_numpy(images), labels, layout.classes, paths)
    train, val, test = (everything.take(parts == part) for part in ("train", "val", "test"))
    _check_counts(root, train, test, say, bool(classes))
    _warn_of_repeated(images, parts, files, say)
    if len(val) and settings.val_fraction:
        raise UserError(
            f"{root} has validation images of its own, so --val_fraction would hold out more; "
            f"leave it out"
        )
    drawn = not all(file.part for file in layout.files)
    name = root.resolve().name
    return Dataset(name, train, val if len(val) else None, test, drawn_test=drawn)


def _parts(
    layout: Layout, labels: torch.Tensor, settings: DataSettings, say: Say, evaluates: bool
) -> np.ndarray:
    """The part of each file, str [N], after test images are held out where there are none."""
    parts = np.array([file.part for file in layout.files])
    if parts.all():
        return parts
    root, fraction = Path(settings.data_dir), settings.test_fraction
    if evaluates and fraction == 1:
        return np.full(len(parts), "test")
    in_test = holdout_mask(labels, fraction, "--test_fraction")
    say(
        f"{root} has no test folder: {in_test.sum()} of the {len(parts)} images are the test "
        f"images, the same ones until files are added or removed (--test_fraction {fraction:g})"
    )
    return np.where(in_test, "test", "train")


def _check_counts(root: Path, train: ImageSet, test: ImageSet, say: Say, evaluates: bool) -> None:
    """Raises `RunError` if the test set has no image, or a class no training image to train on."""
    classes = train.classes
    in_train, in_test = (part.labels.bincount(minlength=len(classes)) for part in (train, test))
    if not in_train.all() and not evaluates:
        name = classes[int(in_train.argmin())]
        raise RunError(f"{root}: no training image of the class {name!r} can be read; add some")
    if not len(test):
        raise RunError(f"{root}: no test image can be read; repair some")
    missing = [name for name, count in zip(classes, in_test, strict=True) if not count]
    if missing:
        say(
            f"warning: the test images of {root} lack {', '.join(missing)}: "
            "their metrics are 0, and averages include them"
        )


def _warn_of_repeated(
    images: np.ndarray, parts: np.ndarray, files: Sequence[Path], say: Say
) -> None:
    """Warns of validation and test images whose pixels are those of a training image."""

    def digests(part: str) -> list[tuple[bytes, int]]:
        chosen = np.flatnonzero(parts == part).tolist()
        return [(hashlib.blake2b(images[i], digest_size=16).digest(), i) for i in chosen]

    trained = dict(digests("train"))
    for part in ("val", "test"):
        repeated = [(i, trained[key]) for key, i in digests(part) if key in trained]
        if repeated:
            first, second = (printable(str(files[i])) for i in repeated[0])
            say(
                f"warning: {len(repeated)} {part} images are training images too, such as {first} "
                f"and {second}: accuracy on them is too high; remove them from one part"
            )
