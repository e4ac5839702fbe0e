"""Finds image files, by suffix or content. Imports neither torch nor numpy."""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from cifarnet.core.errors import printable
from cifarnet.core.late import LateModule

Image = LateModule("PIL.Image")  # predict.py searches folders before it imports anything slow

Say = Callable[[str], None]  # is told what the user should know

NOT_IMAGES = "in no image format"

# Pillow knows these files but cannot read their pixels, or needs another program for it.
UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# These begin with a signature, so they are recognised without an image suffix.
BY_CONTENT = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")

# Of Synology (thumbnails, trash), Windows, Linux file systems and archives that macOS packed.
SYSTEM = "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX"


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of all files that Pillow can read, in lower case: ".png", ".jpg", ..."""
    registered = Image.registered_extensions().items()
    readable = set(Image.OPEN) - UNREADABLE | {"MPO"}  # which opens as JPEG
    return frozenset(suffix for suffix, kind in registered if kind in readable)


def is_image(path: Path) -> bool:
    """Whether the file `path` is an image, by its suffix or else by its content."""
    if path.suffix.lower() in image_suffixes():
        return True
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with warnings.catch_warnings(action="ignore"):  # of tags and sizes
            Image.open(path, formats=BY_CONTENT).close()
    except Exception:  # any file can be here, and raise anything
        return False
    return True


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a system made it."""
    return name.startswith(".") or name in SYSTEM


def find_images(folder: str | Path) -> tuple[list[Path], list[Path], list[OSError]]:
    """Searches `folder` and all below it, in a fixed order, for images.

    Returns the images; the other files and the links to folders, which it does not follow; and the
    errors of folders that could not be read. Skips hidden files and system folders.
    """
    images, not_images, errors = [], [], []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        not_images += [path for name in folders if (path := Path(parent, name)).is_symlink()]
        for path in (Path(parent, name) for name in sorted(files) if not is_hidden(name)):
            (images if is_image(path) else not_images).append(path)
    return images, not_images, errors


def ignored(paths: Sequence[Path], why: str) -> str:
    """The warning that the files `paths`, at least one, are not used, and `why`."""
    files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    return f"warning: ignored {files} {why}, such as {printable(str(paths[0]))}"
