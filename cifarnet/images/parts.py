"""The folders train, test and val of a data set, by their names."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from cifarnet.core.errors import UserError
from cifarnet.core.files import exists
from cifarnet.core.text import composed
from cifarnet.images.finding import is_hidden, is_image

# Words in the name of a folder, in lower case, and the part of the images that it then holds.
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= {"val": "val", "valid": "val", "validation": "val"}
EXACT = {"train", "test", "val", "valid", "validation"}  # the names that alone make a part
KIND = "(?:set|data|dataset|images?|imgs?)"
WORD = re.compile(rf"(?<![a-z])({'|'.join(PARTS)}){KIND}?(?![a-z])")
# What may follow the word: nothing, a number, one letter, or another word for images.
ALONE = re.compile(rf"{WORD.pattern}[\W_]*(?:$|\d|[a-z]$|{KIND}(?![a-z]))")
ORDER = ("train", "test", "val", "")  # in which parts are listed; "": still to be split


def part_folders(root: Path, classes: Collection[str] = ()) -> dict[str, Path]:
    """The folders of the parts in `root`; none if it holds class folders.

    A folder named train that holds no folders can be a class, as in bus, car, train. `classes` are
    those of a network to evaluate. Raises `UserError` if two folders hold the same part.
    """
    folders = _folders_by_part(root, classes)
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


def would_read(root: Path, folder: Path) -> bool:
    """Whether images in `folder`, which need not exist, would be images of the data set in `root`.
    Raises `UserError` or `OSError` where `root` cannot be read."""
    trees = list(part_folders(root).values()) or [root]
    for resolve in (os.path.abspath, os.path.realpath):  # by its path, and where links lead
        path = Path(resolve(folder))
        for tree in map(Path, map(resolve, trees)):
            if path.is_relative_to(tree) and not any(map(is_hidden, path.relative_to(tree).parts)):
                return True
    return False


def named_parts(names: Collection[str]) -> dict[str, str]:
    """The parts that `names` of folders beside each other say, as Training, seg_test or val2017.

    "train station" and "test tube" say no part. With any other words, as in train-jpg and test-jpg,
    two names must differ in the part only.
    """
    matches: dict[str, tuple[str, str]] = {}  # by name: the part, and the other words
    alone = set()
    for name in names:
        words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
        parts = {PARTS[word] for word in WORD.findall(words)}
        if len(parts) == 1:
            matches[name] = parts.pop(), WORD.sub("", words)
            if ALONE.search(words):
                alone.add(name)
    counts = Counter(others for _, others in set(matches.values()))
    return {
        name: part
        for name, (part, others) in matches.items()
        if name in alone or counts[others] > 1
    }


def class_root(part: Path) -> Path:
    """The folder that holds the class folders of `part`: itself, or train/train as in archives."""
    inside = subfolders(part)
    if len(inside) == 1 and not any(path.is_file() and is_image(path) for path in visible(part)):
        name = inside[0].name
        if subfolders(inside[0]) and (name == part.name or named_parts([name])):
            return class_root(inside[0])
    return part


def class_names(part: Path) -> set[str]:
    """The names of the class folders in `part`, to compare: without regard to case."""
    return {_comparable(path.name) for path in subfolders(class_root(part))}


def visible(folder: Path) -> list[Path]:
    """What lies in `folder`, sorted, without hidden files and those of a system."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def subfolders(folder: Path) -> list[Path]:
    """The folders among `visible`."""
    with os.scandir(folder) as entries:  # which knows the many files without asking for each
        others = [Path(entry) for entry in entries if not entry.is_file(follow_symlinks=False)]
    return sorted(path for path in others if not is_hidden(path.name) and path.is_dir())


def check_links(folder: Path) -> None:
    """Raises `UserError` if `folder` or one of its parts holds a broken link that may have been a
    folder: its class or part would be missing. Raises `UserError` or `OSError` where a link cannot
    be followed."""
    parts = [folder / name for name in named_parts([path.name for path in subfolders(folder)])]
    for place in {folder, *parts, *map(class_root, parts)}:
        for path in visible(place):
            if path.is_symlink() and not is_image(path) and not exists(path, follow=True):
                raise UserError(f"{path} is a broken link; repair or remove it")


def _comparable(name: str) -> str:
    return composed(composed(name).casefold())


def _folders_by_part(root: Path, trained: Collection[str] = ()) -> dict[str, list[Path]]:
    """The folders of each part in `root`.

    The names of `EXACT` always make a part. A similar name makes a part if two things hold: no
    exact name makes this part, and the folder shares a class with another part or with `trained`.
    `trained` are the classes of a network. A folder named like one of them is never a part.
    """
    exact: dict[str, list[Path]] = {}
    similar: dict[str, list[Path]] = {}
    names = [path.name for path in subfolders(root) if composed(path.name) not in trained]
    for name, part in named_parts(names).items():
        (exact if name.lower() in EXACT else similar).setdefault(part, []).append(root / name)
    if not similar.keys() - exact.keys():
        return exact
    folders = similar | exact
    classes = {part: set().union(*map(class_names, paths)) for part, paths in folders.items()}
    others = classes | {"network": set(map(_comparable, trained))}
    shared = [a for a in folders for b in others if a != b and classes[a] & others[b]]
    return {part: paths for part, paths in folders.items() if part in exact or part in shared}
