"""Reading image files as 32x32 pixels."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cifarnet.core.errors import UserError
from cifarnet.images.imageset import SIZE


def read_images(paths: Iterable[Path]) -> Iterator[tuple[np.ndarray, tuple[int, int]] | UserError]:
    """Yields what `read_image` returns or raises for each path, in order. Several threads decode.

    If you stop before its end, close the generator: the threads then end.
    """

    def attempt(path: Path) -> tuple[np.ndarray, tuple[int, int]] | UserError:
        try:
            return _decode(path)
        except UserError as problem:
            return problem

    with _no_warnings(), ThreadPoolExecutor() as pool:
        try:
            yield from pool.map(attempt, paths)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_image(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads an image file: (pixels as `to_pixels` returns them, the file's width and height).

    Raises `UserError` if the file cannot be read.
    """
    with _no_warnings():
        return _decode(path)


def to_pixels(image: Image.Image) -> np.ndarray:
    """Turns a picture of any size and mode into uint8 [3,32,32], as the network sees it.

    Applies the exif rotation, scales 16-bit grey to 8 bits and puts transparent pixels on black.
    Resizing ignores proportions. An animation gives its current frame. Raises `UserError` for float
    pixels.
    """
    if image.mode == "F":
        raise UserError("its pixels are floats, which have no agreed range; save it with 8 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, reducing_gap=3)
    return np.array(image).transpose(2, 0, 1)  # a copy: torch needs a writable array


def _decode(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    try:
        if not path.is_file():  # opening a pipe would block
            raise OSError("not a file, or a broken link")
        with Image.open(path) as image:
            return to_pixels(image), image.size
    except Exception as problem:  # a damaged file can raise anything
        why = " ".join(str(problem).split()) or type(problem).__name__
        raise UserError(f"cannot read the image {path} ({why}); repair or remove it") from None


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silences warnings about tags and sizes. Filters are global: enter it in one thread only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
