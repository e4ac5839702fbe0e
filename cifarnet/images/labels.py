"""The layout of images whose classes a CSV file names."""

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifarnet.core.errors import UserError, os_errors
from cifarnet.core.text import composed
from cifarnet.images.finding import Say
from cifarnet.images.layout import File, Layout, checked_classes, say_parts, say_val_is_test
from cifarnet.images.parts import EXACT, ORDER, named_parts, subfolders


def read_labels(root: Path, labels: Path, say: Say, classes: tuple[str, ...] = ()) -> Layout:
    """Lists the images and classes that the CSV file `labels` names.

    A path starts from the file's folder or from `root`. `classes` are those of a network to
    evaluate. Raises `UserError` for another file, and `OSError` if a folder cannot be read.
    """
    class_of: dict[Path, tuple[str, int]] = {}  # an image's class, and the line that names it
    for line, (text, name) in _rows(root, labels, say):
        path = _find(text, root, labels)
        former, former_line = class_of.setdefault(path, (name, line))
        if former != name:
            raise UserError(
                f"--labels {labels}, line {line}: {text!r} is {name!r} here but {former!r} in line "
                f"{former_line}; keep one of them"
            )
        if classes and name not in classes:
            raise UserError(
                f"--labels {labels}, line {line}: the network has no class {name!r}; leave the "
                f"line out, or name a network with this class"
            )
    if not any(path.is_file() for path in class_of):
        raise UserError(
            f"--labels {labels}: none of its {len(class_of)} paths is a file; write them relative "
            f"to it or to --data_dir {root}"
        )
    parts = _parts_of(list(class_of), root, say, evaluates=bool(classes))
    classes = classes or checked_classes({name for name, _ in class_of.values()}, labels)
    files = [File(path, parts[path], classes.index(name)) for path, (name, _) in class_of.items()]
    return Layout(
        classes, sorted(files, key=lambda file: (ORDER.index(file.part), file.label, file.path))
    )


def _rows(root: Path, labels: Path, say: Say) -> list[tuple[int, tuple[str, str]]]:
    """The lines of `labels` with their numbers: path and label. Says which one is a header."""
    unreadable = os_errors(f"--labels {labels}: cannot read it", "name a CSV file")
    try:
        with unreadable, labels.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
        delimiter = max(",;\t", key=lambda each: sum(len(row) == 2 for row in _cells(text, each)))
        reader = _cells(text, delimiter, strict=True)
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
    if rows and not Path(first).suffix and not _find(first, root, labels).is_file():
        say(f"--labels {labels}: the first line, {','.join(rows.pop(0)[1])}, is a header")
    return [(line, (path, composed(name))) for line, (path, name) in rows]


def _cells(text: str, delimiter: str, strict: bool = False) -> Any:
    """A reader of the CSV file with this content."""
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=strict)


def _find(text: str, root: Path, labels: Path) -> Path:
    """The file that a path in `labels` names: relative to `labels`, or else to `root`.
    The disk may hold another Unicode form of a name, and the path may be written as on Windows."""
    for folder in (labels.parent, root):
        for written in (text, text.replace("\\", "/")):
            path = folder
            for part in Path(written).parts:
                forms = (part, composed(part), unicodedata.normalize("NFD", part))
                path = next((path / form for form in forms if (path / form).exists()), path / part)
            if path.is_file():
                return path
    return root / text


def _parts_of(paths: Sequence[Path], root: Path, say: Say, evaluates: bool) -> dict[Path, str]:
    """The part of each image, by the folders train, test and val that it lies in.

    All are still to be split unless they lie in train and another one, or, to evaluate, in another
    one. Other names that say a part, as training_set, count if all images lie in such folders.
    """
    names = [path.name for path in subfolders(root)]
    named = {root / name: part for name, part in named_parts(names).items()}
    exact = {path: part for path, part in named.items() if path.name.lower() in EXACT}
    part_of = _by_folder(paths, named)
    if "" in part_of.values():
        named, part_of = exact, _by_folder(paths, exact)
    parts = set(part_of.values())
    has_tests = bool(parts - {"train", ""})
    may_lack_train = evaluates and "" not in parts
    if not has_tests or not ("train" in parts or may_lack_train):
        return dict.fromkeys(paths, "")
    if "" in parts:
        outside = next(path for path in paths if not part_of[path])
        raise UserError(
            f"--labels: {outside} is not in a folder of training, validation or test images, as "
            f"others are; move it, or leave it out"
        )
    say_parts(root, named, say)
    if "test" not in parts:
        say_val_is_test(next(path for path, part in named.items() if part == "val"), say)
        return {path: "test" if part == "val" else part for path, part in part_of.items()}
    return part_of


def _by_folder(paths: Sequence[Path], folders: Mapping[Path, str]) -> dict[Path, str]:
    """The part of each image by the folder that it, or a link to it, lies in; "" for none."""
    parts = {folder.resolve(): part for folder, part in folders.items()}
    part_of = {}
    for path in paths:
        parents = (path.parent.resolve() / path.name).parents
        part_of[path] = next((parts[parent] for parent in parents if parent in parts), "")
    return part_of
