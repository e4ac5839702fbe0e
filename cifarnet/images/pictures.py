"""Reads image files as squares of pixels. Broken metadata do not stop the reading."""

import contextlib
import io
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from cifarnet.core.errors import UserError
from cifarnet.images.imageset import SIZE


def read_images(
    paths: Iterable[Path], size: int = SIZE
) -> Iterator[tuple[np.ndarray, tuple[int, int]] | UserError]:
    """Reads image files in several threads. Yields in order the pixels as `to_pixels` returns them
    with the file's width and height, or a `UserError` if the file cannot be read.

    If you stop before its end, close the generator: the threads then end.
    """

    def attempt(path: Path) -> tuple[np.ndarray, tuple[int, int]] | UserError:
        try:
            return _decode(path, size)
        except UserError as problem:
            return problem

    paths = list(paths)  # of a generator, a pool that fails would have taken some
    # Filters of warnings are global: they change in this thread only.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor() as pool:
        try:
            try:
                outcomes = pool.map(attempt, paths)
            except RuntimeError:  # no more threads can start: this one reads
                pool.shutdown(cancel_futures=True)
                outcomes = map(attempt, paths)
            yield from outcomes
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_image(path: Path, size: int = SIZE) -> tuple[np.ndarray, tuple[int, int]]:
    """One image file as `read_images` reads it. Raises `UserError`."""
    (outcome,) = read_images([path], size)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def to_pixels(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """Turns a picture of any size and mode into uint8 [3,size,size], as the network sees it.

    Rotates `image` itself as its Exif data say, scales 12-bit and 16-bit grey to 8 bits and puts
    transparent pixels on black. Resizing ignores proportions. Raises `UserError` for floats, and
    for integers of 32 bits.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise UserError("its pixels have no agreed range; save it with 8 bits")
    image.load()  # in a PNG file the orientation may follow the pixels
    with contextlib.suppress(Exception):  # broken Exif data can raise anything
        ImageOps.exif_transpose(image, in_place=True)  # rotates before it writes Exif data again
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError("its pixels have more than 16 bits; save it with 8 bits")
        opaque = values != image.info.get("transparency")
        bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample)
        white = 4095 if bits == (12,) else 65535  # Pillow does not scale 12 bits to 16
        image = Image.fromarray((opaque * values * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3)
    return np.array(image).transpose(2, 0, 1)  # a copy: torch needs a writable array


MISSING = "missing, or a broken link"


def _decode(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    try:
        if not path.is_file():  # opening a pipe would block
            raise OSError("not a file" if path.exists() else MISSING)
        try:
            with Image.open(path) as image:
                return to_pixels(image, size), image.size
        except Exception:  # a damaged file can raise anything
            bare = without_metadata(path.read_bytes())
            if bare is None:
                raise
            with contextlib.suppress(Exception), Image.open(io.BytesIO(bare)) as image:
                return to_pixels(image, size), image.size
            raise
    except Exception as problem:
        why = " ".join(str(problem).split()) or type(problem).__name__
        advice = "check its name" if why == MISSING else "repair or remove it"
        raise UserError(f"cannot read the image {path} ({why}); {advice}") from None


def without_metadata(content: bytes) -> bytes | None:
    """A PNG or JPEG file without text, profiles and the like: with pixels and orientation only.

    Pillow refuses a file for some metadata: a broken profile, or much text. None for other files.
    """
    kept = io.BytesIO()
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        start = kept.write(content[:8])
        while start < len(content):  # length, type, data, checksum
            end = start + 12 + int.from_bytes(content[start : start + 4])
            kind, data = content[start + 4 : start + 8], content[start + 4 : end - 4]
            needed = kind[:1].isupper() or kind == b"tRNS"
            intact = zlib.crc32(data) == int.from_bytes(content[end - 4 : end])
            if needed or (kind == b"eXIf" and intact):
                kept.write(content[start:end])
            start = end
        return kept.getvalue()
    if content.startswith(b"\xff\xd8"):
        start = kept.write(content[:2])
        while content[start : start + 2] not in (b"\xff\xda", b""):  # where the pixels begin
            kind = content[start : start + 2]
            length = int.from_bytes(content[start + 2 : start + 4])
            end = start + 2 + length
            # Exif, and 12 bytes that say which colours an Adobe file has
            needed = kind == b"\xff\xe1" or (kind == b"\xff\xee" and length >= 14)
            if needed or not (b"\xff\xe0" <= kind <= b"\xff\xef" or kind == b"\xff\xfe"):
                kept.write(content[start:end])
            start = end
        kept.write(content[start:])
        return kept.getvalue()
    return None
