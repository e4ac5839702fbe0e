"""Finds image files, by suffix or content. Imports neither torch nor numpy."""

import functools
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cifarnet.core.errors import printable
from cifarnet.core.late import LateModule

Image = LateModule("PIL.Image")  # predict.py searches folders before it imports anything slow

Say = Callable[[str], None]  # is told what the user should know

NOT_IMAGES = "in no image format"

# Pillow knows these files but cannot read their pixels, or needs another program for it.
UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# These begin with a signature, so they are recognised without an image suffix.
BY_CONTENT = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")

# Thumbnails, trash and notes of Synology, QNAP, Windows, macOS, and of others, in one line each.
SYSTEM = re.compile(
    r"@eaDir|@tmp|#recycle|#snapshot|@Recycle|@__thumb|\.@__thumb"
    r"|\$RECYCLE\.BIN|System Volume Information|(eh)?thumbs\.db|desktop\.ini"
    r"|__MACOSX|\._.*|\.DS_Store|\.AppleDouble|\.Spotlight-V100|\.Trashes|\.fseventsd|Icon\r"
    r"|@Recently-Snapshot|~snapshot|found\.\d{3}|__pycache__|lost\+found|\.Trash-\d+",
    re.IGNORECASE,
)


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


def is_system(name: str) -> bool:
    """Whether an operating system or a storage device made the file or folder."""
    return SYSTEM.fullmatch(name) is not None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a system made it."""
    return name.startswith(".") or is_system(name)


class Search(NamedTuple):
    """What lies in a folder and below it, without hidden files."""

    images: list[Path]
    not_images: list[Path]  # other files, and links to folders, which are not followed
    system: list[Path]  # files and folders of an operating system
    errors: list[OSError]  # of folders that could not be read


def find_images(folder: str | Path) -> Search:
    """Searches `folder` and all below it, in a fixed order, for images."""
    search = Search([], [], [], [])
    for parent, folders, files in os.walk(folder, onerror=search.errors.append):
        search.system.extend(Path(parent, n) for n in sorted(folders + files) if is_system(n))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        links = (path for name in folders if (path := Path(parent, name)).is_symlink())
        search.not_images.extend(links)
        for path in (Path(parent, name) for name in sorted(files) if not is_hidden(name)):
            (search.images if is_image(path) else search.not_images).append(path)
    return search


def notes_on_ignored(files: dict[str, Sequence[Path]], system: Sequence[Path]) -> list[str]:
    """Lines on what is not used: `files` by the reason, and `system` files and folders."""
    lines = []
    for why, paths in files.items():
        if paths:
            count = "1 file" if len(paths) == 1 else f"{len(paths)} files"
            lines.append(f"warning: ignored {count} {why}, such as {printable(str(paths[0]))}")
    if system:
        one = len(system) == 1
        count = "1 system file or folder" if one else f"{len(system)} system files and folders"
        lines.append(f"ignored {count}, such as {printable(str(system[0]))}")
    return lines
