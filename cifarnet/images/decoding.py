"""Decodes the images of a folder, and keeps their pixels in a file beside them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from tqdm import tqdm

from cifarnet.core.errors import RunError, UserError, reason
from cifarnet.core.files import remove_leftovers, write_atomically
from cifarnet.images.finding import Say
from cifarnet.images.pictures import read_images
from cifarnet.settings.data import DataSettings

CACHE_NAME = ".cifarnet_{0}x{0}.npz"  # the images decoded to a size, in --data_dir
DECODER = 3  # raise it when the same file gives other pixels: folders are then decoded again
FACTS = ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")  # one changes if a file is replaced


def decoded_images(
    files: Sequence[Path], settings: DataSettings, say: Say
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of all files, uint8 [N,3,S,S], and the indices int64 of unreadable ones.

    Takes what the cache holds, decodes the rest, unreadable ones too, and writes the cache again.
    Raises `RunError` for unreadable ones unless --skip_bad_images, and `OSError` for a folder.
    """
    root, size = Path(settings.data_dir), settings.image_size
    remove_leftovers(root)
    cache, fingerprint = root / CACHE_NAME.format(size), _fingerprint(root, files)
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
            say(f"cannot write {cache} ({reason(problem)}): the next run decodes again")
    if problems and not settings.skip_bad_images:
        raise RunError(
            f"{next(iter(problems.values()))}, or add --skip_bad_images; "
            f"{len(problems)} of the {len(files)} images cannot be read"
        )
    for problem in problems.values():
        say(f"skipped: {problem}")
    return images, bad


def _decode(
    images: np.ndarray, missing: np.ndarray, files: Sequence[Path], say: Say
) -> dict[int, UserError]:
    """Decodes the files at the indices `missing` into `images`; returns the errors by index."""
    resized, problems, size = 0, {}, images.shape[-1]
    with contextlib.closing(read_images([files[i] for i in missing], size)) as outcomes:
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


def _fingerprint(root: Path, files: Sequence[Path]) -> str:
    """Changes with the path, the inode, the size or a time of change of any file, and with the
    decoder."""
    listing = []
    for path in files:
        stat = path.stat() if path.exists() else None  # decoding reports a broken link
        facts = stat and [getattr(stat, fact) for fact in FACTS]
        listing.append([os.path.relpath(path, root), facts])
    content = [DECODER, PIL.__version__, listing]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
