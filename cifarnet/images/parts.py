"""The folders train, test and val of a data set, by their names."""

import itertools
import re
from pathlib import Path

from cifarnet.core.errors import UserError
from cifarnet.core.text import composed
from cifarnet.images.finding import is_hidden, is_image

# Words in the name of a folder, in lower case, and the part of the images that it then holds.
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= {"val": "val", "valid": "val", "validation": "val"}
EXACT = {"train", "test", "val", "valid", "validation"}  # the names that alone make a part
WORD = re.compile(rf"(?<![a-z])({'|'.join(PARTS)})(?:set|data|images)?(?![a-z])")
ORDER = ("train", "test", "val", "")  # in which parts are listed; "": still to be split


def part_folders(root: Path) -> dict[str, Path]:
    """The folders of the parts in `root`; none if it holds class folders.

    A folder named train that holds no folders can be a class, as in bus, car, train. Raises
    `UserError` if two folders hold the same part.
    """
    folders = _folders_by_part(root)
    if folders.keys() == {"train"} and not subfolders(folders["train"][0]):
        return {}
    for part in folders.values():
        if len(part) > 1:
            first, second = (path.name for path in part[:2])
            raise UserError(f"{root} has both {first} and {second}; keep one of them")
    return {part: path for part, (path,) in folders.items()}


def holds_classes(root: Path) -> bool:
    """Whether `root` looks like a folder of images sorted into classes."""
    try:
        if _folders_by_part(root).keys() > {"train"}:
            return True
        with_images = (path for path in subfolders(root) if any(map(is_image, visible(path))))
        return len(list(itertools.islice(with_images, 2))) == 2
    except OSError:  # missing, or unreadable
        return False


def part_of_name(name: str) -> str | None:
    """The part that the name of a folder says, as Training, seg_test or val2017. None: no part."""
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
    parts = {PARTS[word] for word in WORD.findall(words)}
    return parts.pop() if len(parts) == 1 else None


def class_root(part: Path) -> Path:
    """The folder that holds the class folders of `part`: itself, or train/train as in archives."""
    entries = visible(part)
    inside = [path for path in entries if path.is_dir()]
    if len(inside) == 1 and not any(path.is_file() and is_image(path) for path in entries):
        name = inside[0].name
        if subfolders(inside[0]) and (name == part.name or part_of_name(name)):
            return class_root(inside[0])
    return part


def class_names(part: Path) -> set[str]:
    """The names of the class folders in `part`; none if images lie beside them."""
    entries = visible(class_root(part))
    if any(path.is_file() and is_image(path) for path in entries):
        return set()
    return {composed(path.name) for path in entries if path.is_dir()}


def visible(folder: Path) -> list[Path]:
    """What lies in `folder`, sorted, without hidden files and those of a system."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def subfolders(folder: Path) -> list[Path]:
    """The folders among `visible`."""
    return [path for path in visible(folder) if path.is_dir()]


def _folders_by_part(root: Path) -> dict[str, list[Path]]:
    """The folders of each part in `root`.

    The names of EXACT always make a part. Other names that hold one of the words do if the part is
    missing, and if the folder has a class in common with that of another part.
    """
    exact: dict[str, list[Path]] = {}
    similar: dict[str, list[Path]] = {}
    for path in subfolders(root):
        if part := part_of_name(path.name):
            (exact if path.name.lower() in EXACT else similar).setdefault(part, []).append(path)
    if not similar.keys() - exact.keys():
        return exact
    folders = similar | exact
    classes = {part: set().union(*map(class_names, paths)) for part, paths in folders.items()}
    shared = [a for a in folders for b in folders if a != b and classes[a] & classes[b]]
    return {part: paths for part, paths in folders.items() if part in exact or part in shared}
