"""Your own images, sorted into class folders or named by a CSV file."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cifarnet.core.errors import UserError, printable
from cifarnet.core.files import remove_leftovers, write_atomically
from cifarnet.images.finding import Say
from cifarnet.images.imageset import Dataset, ImageSet, held_back
from cifarnet.images.layout import File, read_layout
from cifarnet.images.pictures import read_images
from cifarnet.settings.data import DataSettings

CACHE_NAME = ".cifarnet_{0}x{0}.npz"  # the images decoded to a size, in --data_dir


def read_folder(settings: DataSettings, say: Say) -> Dataset:
    """Reads the images under --data_dir.

    Class names are those of the folders or of --labels, sorted. Where there is no test folder,
    --test_fraction of each class becomes the test images. Decoded images are kept beside the
    class folders, and used again until a file changes. The test images know their files.
    Raises `UserError` for an unreadable image without --skip_bad_images, and for another layout.
    """
    root = Path(settings.data_dir)
    try:
        labels_file = Path(settings.labels) if settings.labels else None
        classes, files = read_layout(root, labels_file, say)
        paths = [os.path.relpath(file.path, root) for file in files]
        fingerprint = _fingerprint(paths, files)
        remove_leftovers(root)
    except OSError as problem:
        raise UserError(
            f"cannot read {problem.filename} ({problem.strerror}); repair or remove it"
        ) from None
    labels = torch.tensor([file.label for file in files])
    parts = _parts(files, labels, settings, say)
    images, bad = _decoded(fingerprint, files, settings, say)
    parts[bad] = ""
    everything = ImageSet(torch.from_numpy(images), labels, classes)
    train, val, test = (everything.take(parts == part) for part in ("train", "val", "test"))
    test_paths = [printable(paths[i]) for i in np.flatnonzero(parts == "test")]
    test = replace(test, paths=np.array(test_paths, dtype=object))
    _check_counts(root, train, test, say)
    _warn_of_repeated(images, parts, files, say)
    if len(val) and settings.val_fraction:
        raise UserError(
            f"{root} has validation images of its own, so --val_fraction would hold back more; "
            f"leave it out"
        )
    return Dataset(root.resolve().name, train, val if len(val) else None, test)


def _parts(
    files: Sequence[File], labels: torch.Tensor, settings: DataSettings, say: Say
) -> np.ndarray:
    """The part of each file, str [N], after test images are held back where there are none."""
    parts = np.array([file.part for file in files])
    if parts.all():
        return parts
    root, fraction = Path(settings.data_dir), settings.test_fraction
    in_test = held_back(labels, fraction, "--test_fraction")
    say(
        f"{root} has no test folder: {in_test.sum()} of the {len(files)} images, always the same "
        f"ones, are the test images (--test_fraction {fraction:g})"
    )
    return np.where(in_test, "test", "train")


def _fingerprint(paths: Sequence[str], files: Sequence[File]) -> str:
    """Changes with the path, the size or a time of change of any file."""
    listing = []
    for path, file in zip(paths, files, strict=True):
        stat = file.path.stat() if file.path.exists() else None  # decoding reports a broken link
        listing.append([path, stat and [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]])
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _decoded(
    fingerprint: str, files: Sequence[File], settings: DataSettings, say: Say
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of all files, uint8 [N,3,S,S], and the indices int64 of unreadable ones.

    Takes what the cache holds, decodes the rest, unreadable ones too, and writes the cache again.
    Raises `UserError` for unreadable ones unless --skip_bad_images.
    """
    size = settings.image_size
    cache = Path(settings.data_dir) / CACHE_NAME.format(size)
    images, missing = np.zeros((len(files), 3, size, size), np.uint8), np.arange(len(files))
    with contextlib.suppress(Exception):  # a damaged archive can raise anything
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if str(archive["fingerprint"]) == fingerprint:
                images, missing = archive["images"], archive["bad"]
    problems = _decode(images, missing, files, say)
    bad = np.fromiter(problems, np.int64)
    if len(bad) < len(missing):
        arrays = {"fingerprint": np.array(fingerprint), "images": images, "bad": bad}
        try:
            write_atomically(cache, lambda file: np.savez(file, **arrays))
        except OSError as problem:
            say(f"cannot write {cache} ({problem.strerror}): the next run decodes again")
    if problems and not settings.skip_bad_images:
        raise UserError(
            f"{next(iter(problems.values()))}, or add --skip_bad_images; "
            f"{len(problems)} of the {len(files)} images cannot be read"
        )
    for problem in problems.values():
        say(f"skipped: {problem}")
    return images, bad


def _decode(
    images: np.ndarray, missing: np.ndarray, files: Sequence[File], say: Say
) -> dict[int, UserError]:
    """Decodes the files at the indices `missing` into `images`; returns the errors by index."""
    resized, problems, size = 0, {}, images.shape[-1]
    with contextlib.closing(read_images([files[i].path for i in missing], size)) as outcomes:
        shown = tqdm(outcomes, "decoding", len(missing), leave=False, disable=None)
        for i, outcome in zip(missing.tolist(), shown, strict=True):
            if isinstance(outcome, UserError):
                problems[i] = outcome
            else:
                images[i], original_size = outcome
                resized += original_size != (size, size)
    if resized:
        say(f"resized {resized} of {len(missing)} images to {size}x{size}")
    return problems


def _check_counts(root: Path, train: ImageSet, test: ImageSet, say: Say) -> None:
    """Raises `UserError` if a class has no training image left, or the test set no image."""
    classes = train.classes
    in_train, in_test = (part.labels.bincount(minlength=len(classes)) for part in (train, test))
    if not in_train.all():
        name = classes[int(in_train.argmin())]
        raise UserError(f"{root}: no training image of the class {name!r} can be read; add some")
    if not len(test):
        raise UserError(f"{root}: no test image can be read; repair some")
    missing = [name for name, count in zip(classes, in_test, strict=True) if not count]
    if missing:
        say(
            f"warning: the test images of {root} lack {', '.join(missing)}: "
            "their metrics are 0, and averages include them"
        )


def _warn_of_repeated(
    images: np.ndarray, parts: np.ndarray, files: Sequence[File], say: Say
) -> None:
    """Warns of validation and test images whose pixels are those of a training image."""

    def digests(part: str) -> list[tuple[bytes, int]]:
        chosen = np.flatnonzero(parts == part).tolist()
        return [(hashlib.blake2b(images[i], digest_size=16).digest(), i) for i in chosen]

    trained = dict(digests("train"))
    for part in ("val", "test"):
        repeated = [(i, trained[key]) for key, i in digests(part) if key in trained]
        if repeated:
            first, second = (printable(str(files[i].path)) for i in repeated[0])
            say(
                f"warning: {len(repeated)} {part} images are training images too, such as {first} "
                f"and {second}: accuracy on them is too high; remove them from one part"
            )
