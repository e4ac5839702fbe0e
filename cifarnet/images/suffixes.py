"""Which files are images, by their names. Needs neither torch nor PIL."""

from collections.abc import Sequence
from pathlib import Path

from cifarnet.core.errors import printable

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))
NO_SUFFIX = f"without an image extension ({SUFFIXES})"


def ignored(paths: Sequence[Path], why: str) -> str:
    """The warning that the files `paths`, at least one, are not used, and `why`."""
    files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    return f"warning: ignored {files} {why}, such as {printable(str(paths[0]))}"
