"""Finding, fetching, checking and reading images: every data set becomes uint8 arrays in memory, once."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cifarnet.core.errors import UserError
from cifarnet.core.files import remove_leftovers, write_atomically
from cifarnet.images.imageset import SIZE, ImageSet
from cifarnet.images.pictures import IMAGE_SUFFIXES, NO_IMAGES, SUFFIXES, left_out, read_images

CACHE_NAME = ".cifarnet_32x32.npz"


def _read_folder(
    root: Path, skip_bad: bool, say: Callable[[str], None]
) -> tuple[ImageSet, ImageSet]:
    """`root`/train/<class>/* and `root`/test/<class>/*, decoded once and kept beside them in one file.

    With `skip_bad` what cannot be read is left out, and told.
    """
    try:
        classes, files = _list_folder(root, say)
        listing = [[str(path.relative_to(root)), *_stamp(path)] for path, _, _ in files]
        remove_leftovers(root)
    except OSError as problem:
        raise UserError(
            f"cannot read {problem.filename} ({problem.strerror}); repair or remove it"
        ) from None
    fingerprint = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    cache = root / CACHE_NAME
    images, missing = _load_decoded(cache, fingerprint, len(files))
    problems = _decode_missing(images, missing, [path for path, _, _ in files], skip_bad, say)
    bad = np.fromiter(problems, np.int64)
    if len(bad) < len(missing):
        arrays = {"fingerprint": np.array(fingerprint), "images": images, "bad": bad}
        try:
            write_atomically(cache, lambda file: np.savez(file, **arrays))
        except OSError as problem:
            say(
                f"decoded images are kept in memory only: {cache} cannot be written ({problem.strerror})"
            )
    for problem in problems.values():
        say(f"skipped: {problem}")
    pixels = torch.from_numpy(images)
    labels = torch.tensor([label for _, _, label in files])
    is_test = np.array([split == "test" for _, split, _ in files])
    good = np.ones(len(files), dtype=bool)
    good[bad] = False
    both = ImageSet(pixels, labels, classes)
    train, test = both.take(~is_test & good), both.take(is_test & good)
    left = train.labels.bincount(minlength=len(classes))
    if not left.all() or not len(test):
        which = root / "train" / classes[int(left.argmin())] if not left.all() else root / "test"
        raise UserError(f"no image in {which} can be read; repair them")
    in_test = test.labels.bincount(minlength=len(classes))
    absent = [name for name, count in zip(classes, in_test, strict=True) if not count]
    if absent:
        say(
            f"warning: {root / 'test'} lacks {', '.join(absent)}; their figures, and their part in averages, will be 0"
        )
    return train, test


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; zeros for a broken link, which decoding will name."""
    if not path.exists():
        return 0, 0
    return path.stat().st_size, path.stat().st_mtime_ns


def _list_folder(
    root: Path, say: Callable[[str], None]
) -> tuple[tuple[str, ...], list[tuple[Path, str, int]]]:
    """The classes, and (path, "train" or "test", label) of every image, in a fixed order.

    Raises `UserError` for what is missing, empty or does not fit together.
    """
    if not root.is_dir():
        raise UserError(
            f"--data_dir {root} {'is a file' if root.exists() else 'is not there'}; name a directory"
        )
    classes: tuple[str, ...] = ()
    files, loose, others = [], [], []
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise UserError(
                f"{root / split} is not there; --dataset folder reads train/<class>/* and test/<class>/*"
            )
        there = _visible(root / split)
        found = [path.name for path in there if path.is_dir()]
        if split == "train":
            classes = tuple(found)
            if len(classes) < 2:
                raise UserError(
                    f"{root / split} has {len(classes)} class folders; two are needed at least"
                )
        broken = [name for name in found if not name.isprintable()]
        if broken:
            raise UserError(
                f"{root / split} has a class whose name cannot be printed: {broken[0]!r}; rename it"
            )
        strange = sorted(set(found) - set(classes))
        if strange or not found:
            what = (
                f"has the class {strange[0]!r}, which train lacks"
                if strange
                else "has no class folders"
            )
            raise UserError(f"{root / split} {what}; rename or remove it, or add what is missing")
        loose += [p for p in there if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
        for name in found:
            inside = _visible(root / split / name)
            paths = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
            if not paths:
                raise UserError(f"{root / split / name} holds no images ({SUFFIXES})")
            files += [(path, split, classes.index(name)) for path in paths]
            others += [p for p in inside if p.suffix.lower() not in IMAGE_SUFFIXES]
    for paths, why in ((loose, "as in no class's folder"), (others, NO_IMAGES)):
        if paths:
            say(left_out(paths, why))
    return classes, files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _load_decoded(cache: Path, fingerprint: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N,3,32,32], of which those at the indices int64 are still to be decoded, having been unreadable:
    all `count`, where the cache is missing, damaged or of another tree."""
    with contextlib.suppress(Exception):  # a damaged archive can raise anything
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) == fingerprint:
                images = kept["images"]
                if images.shape == (count, 3, SIZE, SIZE) and images.dtype == np.uint8:
                    return images, kept["bad"]
    return np.zeros((count, 3, SIZE, SIZE), dtype=np.uint8), np.arange(count)


def _decode_missing(
    images: np.ndarray,
    missing: np.ndarray,
    paths: list[Path],
    skip_bad: bool,
    say: Callable[[str], None],
) -> dict[int, UserError]:
    """Decodes the `images` at the indices `missing`, in place; returns why which of them cannot be read.

    Raises the first such `UserError`, unless `skip_bad`.
    """
    resized, problems = 0, {}
    with contextlib.closing(read_images([paths[i] for i in missing])) as decoded:
        shown = tqdm(decoded, "decoding", len(missing), leave=False, disable=None)
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
