"""Your own images: `root`/train/<class>/* and `root`/test/<class>/*."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from cifarnet.core.errors import UserError
from cifarnet.core.files import remove_leftovers, write_atomically
from cifarnet.images.imageset import SIZE, ImageSet
from cifarnet.images.pictures import read_images
from cifarnet.images.suffixes import IMAGE_SUFFIXES, NO_SUFFIX, SUFFIXES, ignored

CACHE_NAME = ".cifarnet_32x32.npz"  # the decoded images, beside train/ and test/


class _File(NamedTuple):
    """An image file of the tree."""

    path: Path
    split: str  # "train" or "test"
    label: int


def read_folder(
    root: Path, skip_bad: bool, say: Callable[[str], None]
) -> tuple[ImageSet, ImageSet]:
    """Reads the tree under `root` as (train, test); class names are those of the folders, sorted.

    Decoded images are kept in `root`/.cifarnet_32x32.npz, and used again until a file changes.
    `say` is told of ignored files, resized images and classes without test images. With `skip_bad`
    it is told of unreadable images too, which are left out. Raises `UserError` for an unreadable
    image otherwise, and for a tree that has another form.
    """
    try:
        classes, files = _list_folder(root, say)
        fingerprint = _fingerprint(root, files)
        remove_leftovers(root)
    except OSError as problem:
        raise UserError(
            f"cannot read {problem.filename} ({problem.strerror}); repair or remove it"
        ) from None
    images, bad = _decoded(root / CACHE_NAME, fingerprint, files, skip_bad, say)
    good = np.ones(len(files), dtype=bool)
    good[bad] = False
    in_test = np.array([file.split == "test" for file in files])
    labels = torch.tensor([file.label for file in files])
    both = ImageSet(torch.from_numpy(images), labels, classes)
    train, test = both.take(~in_test & good), both.take(in_test & good)
    _check_counts(root, train, test, say)
    return train, test


def _list_folder(root: Path, say: Callable[[str], None]) -> tuple[tuple[str, ...], list[_File]]:
    """Lists the classes and all image files, in a fixed order.

    Raises `UserError` if something is missing, empty or does not match.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"--data_dir {root} {what}; name a directory")
    classes: tuple[str, ...] = ()
    files, loose, others = [], [], []
    for split in ("train", "test"):
        folder = root / split
        if not folder.is_dir():
            raise UserError(
                f"{folder} does not exist; a folder needs train/<class>/* and test/<class>/*"
            )
        there = _visible(folder)
        found = [path.name for path in there if path.is_dir()]
        if split == "train":
            classes = tuple(found)
        _check_classes(folder, found, classes)
        loose += [p for p in there if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
        for name in found:
            inside = _visible(folder / name)
            paths = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
            if not paths:
                raise UserError(f"{folder / name} has no images ({SUFFIXES}); add some")
            files += [_File(path, split, classes.index(name)) for path in paths]
            others += [p for p in inside if p.suffix.lower() not in IMAGE_SUFFIXES]
    for paths, why in ((loose, "outside the class folders"), (others, NO_SUFFIX)):
        if paths:
            say(ignored(paths, why))
    return classes, files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _check_classes(folder: Path, found: list[str], classes: tuple[str, ...]) -> None:
    """Raises `UserError` if the class folders `found` do not match train's `classes`."""
    if len(classes) < 2:
        raise UserError(f"{folder} has {len(classes)} class folders; it needs two or more")
    if not found:
        raise UserError(f"{folder} has no class folders; add them")
    for name in found:
        if not name.isprintable():  # it would break log lines and reports
            raise UserError(
                f"{folder} has a class name that cannot be printed, {name!r}; rename it"
            )
        if name not in classes:
            raise UserError(
                f"{folder} has the class {name!r}, which train lacks; rename or remove it"
            )


def _fingerprint(root: Path, files: list[_File]) -> str:
    """Changes with the name, the size or the time of change of any file."""
    listing = [[str(file.path.relative_to(root)), *_stamp(file.path)] for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; zeros for a broken link, which decoding reports."""
    if not path.exists():
        return 0, 0
    return path.stat().st_size, path.stat().st_mtime_ns


def _decoded(
    cache: Path, fingerprint: str, files: list[_File], skip_bad: bool, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of all files, uint8 [N,3,32,32], and the indices int64 of unreadable ones.

    Takes what the cache holds, decodes the rest and writes the cache again.
    """
    images, missing = _load_cache(cache, fingerprint, len(files))
    problems = _decode(images, missing, files, skip_bad, say)
    bad = np.fromiter(problems, np.int64)
    if len(bad) < len(missing):
        arrays = {"fingerprint": np.array(fingerprint), "images": images, "bad": bad}
        try:
            write_atomically(cache, lambda file: np.savez(file, **arrays))
        except OSError as problem:
            why = problem.strerror
            say(f"cannot write {cache} ({why}): the next run decodes again")
    for problem in problems.values():
        say(f"skipped: {problem}")
    return images, bad


def _load_cache(cache: Path, fingerprint: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Loads the kept images, uint8 [N,3,32,32], and the indices int64 of those still to decode.

    Images that could not be read are tried again. All `count` are to decode if the cache is
    missing, damaged or made from other files.
    """
    with contextlib.suppress(Exception):  # a damaged archive can raise anything
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) == fingerprint:
                return kept["images"], kept["bad"]
    return np.zeros((count, 3, SIZE, SIZE), dtype=np.uint8), np.arange(count)


def _decode(
    images: np.ndarray,
    missing: np.ndarray,
    files: list[_File],
    skip_bad: bool,
    say: Callable[[str], None],
) -> dict[int, UserError]:
    """Decodes the files at the indices `missing` into `images`; returns the errors by index.

    Raises the first error unless `skip_bad`.
    """
    resized, problems = 0, {}
    with contextlib.closing(read_images([files[i].path for i in missing])) as outcomes:
        shown = tqdm(outcomes, "decoding", len(missing), leave=False, disable=None)
        for i, outcome in zip(missing.tolist(), shown, strict=True):
            if isinstance(outcome, UserError):
                if not skip_bad:
                    raise outcome
                problems[i] = outcome
            else:
                images[i], original_size = outcome
                resized += original_size != (SIZE, SIZE)
    if resized:
        say(f"resized {resized} of {len(missing)} images to {SIZE}x{SIZE}")
    return problems


def _check_counts(root: Path, train: ImageSet, test: ImageSet, say: Callable[[str], None]) -> None:
    """Raises `UserError` if a class has no training image left, or the test set no image."""
    classes = train.classes
    in_train, in_test = (part.labels.bincount(minlength=len(classes)) for part in (train, test))
    if not in_train.all() or not len(test):
        empty = (
            root / "test" if in_train.all() else root / "train" / classes[int(in_train.argmin())]
        )
        raise UserError(f"no image in {empty} can be read; repair them")
    absent = [name for name, count in zip(classes, in_test, strict=True) if not count]
    if absent:
        say(
            f"warning: {root / 'test'} lacks {', '.join(absent)}: "
            "their metrics are 0, and averages include them"
        )
