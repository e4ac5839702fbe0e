"""The layout of a folder of your own images: the class and the part of each file."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cifarnet.core.errors import UserError
from cifarnet.core.text import composed
from cifarnet.images.finding import (
    NOT_IMAGES,
    Say,
    find_images,
    is_image,
    is_system,
    notes_on_ignored,
)
from cifarnet.images.parts import (
    EXACT,
    ORDER,
    check_links,
    class_names,
    class_root,
    holds_classes,
    named_parts,
    part_folders,
    subfolders,
    visible,
)


class File(NamedTuple):
    """An image file, and where it belongs."""

    path: Path
    part: str  # "train", "val" or "test"; "": still to be split
    label: int


class Layout(NamedTuple):
    """The images of a folder."""

    classes: tuple[str, ...]
    files: list[File]  # those of a part and a class lie together, in a fixed order


def read_layout(root: Path, say: Say, classes: tuple[str, ...] = ()) -> Layout:
    """Lists the images under `root` by their class folders.

    Their part follows from `part_folders`; where there are none, they are still to be split.
    Without test, val holds the test images. `classes` are those of a network to evaluate: training
    images, and images of some classes, may then be missing. Raises `UserError` if something is
    missing, empty or does not match, and `OSError` if a folder cannot be read.
    """
    check_links(root)
    parts = part_folders(root, classes)
    if parts and "train" not in parts and not classes:
        raise UserError(
            f"{root} has {' and '.join(path.name for path in parts.values())} but no train folder; "
            f"add one, or name a folder that holds class folders only"
        )
    if parts.keys() == {"train"}:
        raise UserError(
            f"{root} has no test, val, valid or validation folder beside {parts['train'].name}; "
            f"add one, or hold out test images with --data_dir {parts['train']}"
        )
    say_parts(root, {path: part for part, path in parts.items()}, say)
    if "val" in parts and "test" not in parts:
        parts["test"] = parts.pop("val")
        say_val_is_test(parts["test"], say)
    others = [path.name for path in subfolders(root) if path not in parts.values()]
    if parts and others:
        say(f"warning: ignored what is neither train, test nor val in {root}: {', '.join(others)}")
    return _read_class_folders(root, parts or {"": root}, say, classes)


def say_parts(root: Path, parts: Mapping[Path, str], say: Say) -> None:
    """Says which folder is which part, unless their names are just that."""
    if any(path.name.lower() not in EXACT for path in parts):
        names = (f"{path.name} is {part}" for path, part in parts.items())
        say(f"parts of {root}: {', '.join(names)}")


def say_val_is_test(folder: Path, say: Say) -> None:
    """Says that validation images are the test images."""
    say(f"{folder} holds the test images: there is no test folder")


def _read_class_folders(
    root: Path, parts: dict[str, Path], say: Say, classes: tuple[str, ...]
) -> Layout:
    others = "train lacks"
    if classes:
        some = ", ".join([*classes[:3], *(["..."] if len(classes) > 3 else [])])
        others = f"the network lacks: it knows {len(classes)} ({some})"
    roots = {part: class_root(folder) if part else folder for part, folder in parts.items()}
    system = [
        p for folder in {root, *roots.values()} for p in folder.iterdir() if is_system(p.name)
    ]
    files, loose, not_images = [], [], []
    for part, folder in sorted(roots.items(), key=lambda item: ORDER.index(item[0])):
        folders = subfolders(folder)
        _refuse_parts(folder, folders)
        _refuse_links(folder, folders)
        classes = classes or checked_classes({composed(path.name) for path in folders}, folder)
        if not folders:
            raise UserError(f"{folder} has no class folders; add them, or name a --labels file")
        strange = [path.name for path in folders if composed(path.name) not in classes]
        if strange:
            raise UserError(
                f"{folder} has the class {strange[0]!r}, which {others}; rename or remove it"
            )
        loose += [path for path in visible(folder) if not path.is_dir() and is_image(path)]
        for path in folders:
            search = find_images(path)
            if search.errors:
                raise search.errors[0]
            if not search.images:
                raise UserError(f"{path} has no images; add some, or remove the folder")
            label = classes.index(composed(path.name))
            files += [File(image, part, label) for image in search.images]
            not_images += search.not_images
            system += search.system
    ignored = {"outside the class folders": loose, NOT_IMAGES: not_images}
    for note in notes_on_ignored(ignored, sorted(system)):
        say(note)
    return Layout(classes, sorted(files, key=lambda file: (ORDER.index(file.part), file.label)))


def checked_classes(names: Collection[str], where: Path) -> tuple[str, ...]:
    """The class `names` of `where`, sorted: at least two, and printable. Raises `UserError`."""
    if len(names) < 2:
        what = f"only one class, {min(names)!a}" if names else "no class"
        inside = [where / name for name in names if holds_classes(where / name)]
        hint = f"; did you mean --data_dir {inside[0]}?" if inside else ""
        if not names and any(map(is_image, visible(where))):
            hint = "; images lie in it without a class folder"
        needed = "two or more are needed" + ", with a folder for each" * where.is_dir()
        raise UserError(f"{where} has {what}; {needed}{hint}")
    for name in names:
        if not name.isprintable():  # it would break log lines and reports
            raise UserError(f"{where} has a class name that cannot be printed, {name!r}; rename it")
    return tuple(sorted(names))


def _refuse_parts(folder: Path, folders: Sequence[Path]) -> None:
    """Raises `UserError` if `folders` look like parts, not classes.

    Two of them hold two or more folders of the same names, or their names say train and test.
    """
    names = {path: inside for path in folders if len(inside := class_names(path)) > 1}
    for first, second in itertools.combinations(names, 2):
        if len(same := names[first] & names[second]) > 1:
            some = ", ".join(sorted(same)[:3])
            raise UserError(
                f"{folder}: {first.name} and {second.name} hold the same folders ({some}); "
                f"rename them train and test, or, if they are classes, name a --labels file"
            )
    parts = {part: name for name, part in named_parts([path.name for path in folders]).items()}
    if len(parts) > 1 and "train" in parts:
        train, other = parts.pop("train"), min(parts.values())
        raise UserError(
            f"{folder}: {train} and {other} look like parts, not classes; "
            f"give both the same class folders, or name a --labels file"
        )


def _refuse_links(folder: Path, folders: Sequence[Path]) -> None:
    """Raises `UserError` if links make the same images belong to two of the class `folders`."""
    real = folder.resolve()
    classes: dict[Path, Path] = {}
    for path in folders:
        target = path.resolve()
        other = folder if target in (real, *real.parents) else classes.setdefault(target, path)
        if other is not path:
            raise UserError(f"{path} and {other} hold the same images; remove the link")
