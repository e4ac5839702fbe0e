"""The layout of a folder of your own images: the class and the part of each file."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cifarnet.core.errors import UserError, os_errors
from cifarnet.core.files import existing_directory
from cifarnet.images.finding import NOT_IMAGES, Say, find_images, ignored, is_hidden, is_image

# Names of folders, in lower case, and the part of the images that they hold.
PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
ORDER = ("train", "test", "val", "")  # the files of a layout come in this order


class File(NamedTuple):
    """An image file, and where it belongs."""

    path: Path
    part: str  # "train", "val" or "test"; "": still to be split
    label: int


class Layout(NamedTuple):
    """The images of a folder."""

    classes: tuple[str, ...]
    files: list[File]  # those of a part and a class lie together, in a fixed order


def read_layout(root: Path, labels: Path | None, say: Say) -> Layout:
    """Lists the images under `root`, by their class folders, or by the CSV file `labels`.

    Their part follows from the folders of PARTS in `root`; where there are none, they are still to
    be split. Without test, val holds the test images. Raises `UserError` if something is missing,
    empty or does not match, and `OSError` if a folder cannot be read.
    """
    existing_directory(root, "--data_dir")
    if labels is not None:
        return _read_labels(root, labels, say)
    parts = _part_folders(root)
    if not parts:
        parts = {"": root}
    elif "train" not in parts:
        raise UserError(
            f"{root} has {' and '.join(path.name for path in parts.values())} but no train folder; "
            f"add one, or name a folder that holds class folders only"
        )
    elif len(parts) == 1:
        raise UserError(
            f"{root} has no test, val, valid or validation folder beside train; add one, or hold "
            f"back test images with --data_dir {parts['train']}"
        )
    elif "test" not in parts:
        parts["test"] = parts.pop("val")
        _say_val_is_test(parts["test"], say)
    return _read_class_folders(parts, say)


def holds_classes(root: Path) -> bool:
    """Whether `root` looks like a folder of images sorted into classes."""
    try:
        if {path.name.lower() for path in _folders(root)} & PARTS.keys() > {"train"}:
            return True
        with_images = (path for path in _folders(root) if any(map(is_image, _visible(path))))
        return len(list(itertools.islice(with_images, 2))) == 2
    except OSError:  # missing, or unreadable
        return False


def _say_val_is_test(folder: Path, say: Say) -> None:
    say(f"{folder} holds the test images: there is no test folder")


def _part_folders(root: Path) -> dict[str, Path]:
    """The folders of the parts in `root`; none if it holds class folders.
    A folder named train that holds no folders can be a class, as in bus, car, train."""
    folders = [path for path in _folders(root) if path.name.lower() in PARTS]
    if [path.name.lower() for path in folders] == ["train"] and not _folders(folders[0]):
        return {}
    parts: dict[str, Path] = {}
    for path in folders:
        part = PARTS[path.name.lower()]
        if part in parts:
            raise UserError(f"{root} has both {parts[part].name} and {path.name}; keep one of them")
        parts[part] = path
    return parts


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


# --- class folders ---


def _read_class_folders(parts: dict[str, Path], say: Say) -> Layout:
    classes: tuple[str, ...] = ()
    files, loose, not_images = [], [], []
    for part, folder in sorted(parts.items(), key=lambda item: ORDER.index(item[0])):
        entries = _visible(folder)
        names = [path.name for path in entries if path.is_dir()]
        classes = classes or _checked_classes(names, folder)
        if not names:
            raise UserError(f"{folder} has no class folders; add them, or name a --labels file")
        strange = [name for name in names if name not in classes]
        if strange:
            raise UserError(
                f"{folder} has the class {strange[0]!r}, which train lacks; rename or remove it"
            )
        loose += [path for path in entries if not path.is_dir() and is_image(path)]
        for name in names:
            images, ignorable, errors = find_images(folder / name)
            if errors:
                raise errors[0]
            if not images:
                raise UserError(f"{folder / name} has no images; add some, or remove the folder")
            files += [File(path, part, classes.index(name)) for path in images]
            not_images += ignorable
    for paths, why in ((loose, "outside the class folders"), (not_images, NOT_IMAGES)):
        if paths:
            say(ignored(paths, why))
    return Layout(classes, files)


def _checked_classes(names: Sequence[str], where: Path) -> tuple[str, ...]:
    """Checks the class `names` of `where`: at least two, and printable. Raises `UserError`."""
    if len(names) < 2:
        what = f"only one class, {names[0]!a}" if names else "no class"
        inside = [where / name for name in names if holds_classes(where / name)]
        hint = f"; did you mean --data_dir {inside[0]}?" if inside else ""
        if not names and any(map(is_image, _visible(where))):
            hint = "; images lie in it without a class folder"
        raise UserError(f"{where} has {what}; it needs two or more, with a folder for each{hint}")
    for name in names:
        if not name.isprintable():  # it would break log lines and reports
            raise UserError(f"{where} has a class name that cannot be printed, {name!r}; rename it")
    return tuple(names)


# --- a CSV file ---


def _read_labels(root: Path, labels: Path, say: Say) -> Layout:
    """The images and classes that the CSV file `labels` names."""
    class_of: dict[Path, tuple[str, int]] = {}  # an image's class, and the line that names it
    for line, (text, name) in _rows(root, labels):
        path = _find(text, root, labels)
        former, former_line = class_of.setdefault(path, (name, line))
        if former != name:
            raise UserError(
                f"--labels {labels}, line {line}: {text!r} is {name!r} here but {former!r} in line "
                f"{former_line}; keep one of them"
            )
    if not any(path.is_file() for path in class_of):
        raise UserError(
            f"--labels {labels}: none of its {len(class_of)} paths is a file; write them relative "
            f"to it or to --data_dir {root}"
        )
    classes = _checked_classes(sorted({name for name, _ in class_of.values()}), labels)
    parts = _parts_of(list(class_of), root, say)
    files = [File(path, parts[path], classes.index(name)) for path, (name, _) in class_of.items()]
    return Layout(
        classes, sorted(files, key=lambda file: (ORDER.index(file.part), file.label, file.path))
    )


def _rows(root: Path, labels: Path) -> list[tuple[int, list[str]]]:
    """The lines of `labels` with their numbers: path and label. Leaves out a header."""
    unreadable = os_errors(f"--labels {labels}: cannot read it", "name a CSV file")
    try:
        with unreadable, labels.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [
                (reader.line_num, [cell.strip() for cell in row])
                for row in reader
                if any(map(str.strip, row))
            ]
    except (csv.Error, UnicodeDecodeError) as problem:
        raise UserError(
            f"--labels {labels} is not a CSV file in UTF-8 ({problem}); save it as one"
        ) from None
    for line, row in rows:
        if len(row) != 2 or not all(row) or "\0" in row[0]:
            raise UserError(
                f"--labels {labels}, line {line}: not a path and a label; write path,label"
            )
    first = rows[0][1][0] if rows else ""
    is_header = not Path(first).suffix and not _find(first, root, labels).is_file()
    return rows[is_header:]


def _find(text: str, root: Path, labels: Path) -> Path:
    """The file that a path in `labels` names: relative to `labels`, or else to `root`."""
    beside = labels.parent / text
    return beside if beside.is_file() else root / text


def _parts_of(paths: Sequence[Path], root: Path, say: Say) -> dict[Path, str]:
    """The part of each image, by the folders train, test and val that it lies in.
    All are still to be split unless they lie in train and another one."""
    folders = {folder.resolve(): part for part, folder in _part_folders(root).items()}
    part_of = {}
    for path in paths:
        parents = (path.parent.resolve() / path.name).parents  # a link counts where it is
        part_of[path] = next((folders[parent] for parent in parents if parent in folders), "")
    parts = set(part_of.values())
    if "train" not in parts or parts <= {"train", ""}:
        return dict.fromkeys(paths, "")
    if "" in parts:
        outside = next(path for path in paths if not part_of[path])
        raise UserError(
            f"--labels: {outside} lies outside the folders of {root}, train and others; "
            f"move it, or keep to the images of one folder"
        )
    if "test" not in parts:
        folder = next(path for path, part in folders.items() if part == "val")
        _say_val_is_test(folder, say)
        return {path: "test" if part == "val" else part for path, part in part_of.items()}
    return part_of
