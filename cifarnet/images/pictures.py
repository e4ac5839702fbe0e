"""Reading single pictures."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cifarnet.core.errors import UserError, printable
from cifarnet.images.imageset import SIZE

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))


NO_IMAGES = f"as no images by their names ({SUFFIXES})"


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__


def left_out(paths: Sequence[Path], why: str) -> str:
    """The warning that `paths`, at least one, are not used, and `why`."""
    return f"warning: left out {why}: {len(paths)}, such as {printable(str(paths[0]))}"


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Without warnings of tags and profiles that play no part here. For one thread at a time: the filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_images(paths: Iterable[Path]) -> Iterator[tuple[np.ndarray, tuple[int, int]] | UserError]:
    """What `read_image` returns, or raises, for each of `paths`, in order, by several threads. Close it if it is left
    before its end."""

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
    """An image file as `to_pixels` makes it, and its own (width, height). Raises `UserError` for an unreadable one."""
    with _no_warnings():
        return _decode(path)


def _decode(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError("not a file, or a broken link")
        with Image.open(path) as image:
            return to_pixels(image), image.size
    except Exception as problem:  # a damaged file can raise anything
        raise UserError(
            f"cannot read the image {path} ({_one_line(problem)}); repair or remove it"
        ) from None


def to_pixels(image: Image.Image) -> np.ndarray:
    """A picture of any size and mode as uint8 [3,32,32], as the network is to see it; of an animation, its frame.

    Its exif rotation is respected, 16-bit grey is scaled to 8 bits, what is transparent becomes black, and
    another size is resized without regard to its proportions. Raises `UserError` for pixels that are floats.
    """
    if image.mode == "F":
        raise UserError(
            "its pixels are floats, for which there is no agreed range; save it with 8 bits"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, reducing_gap=3)
    return np.array(image).transpose(2, 0, 1)  # a copy: torch wants arrays that can be written to
