import os
import shutil
from pathlib import Path

import pytest
from support.pictures import draw_tree

from cifarnet.core.errors import UserError
from cifarnet.images.layout import Layout, read_layout


def read_classes(root: Path, messages: list[str] | None = None) -> Layout:
    return read_layout(root, (messages if messages is not None else []).append)


def counts(layout: Layout) -> dict[str, list[int]]:
    """By part: the number of images of each class."""
    by_part = {}
    for file in layout.files:
        by_part.setdefault(file.part, [0] * len(layout.classes))[file.label] += 1
    return by_part


# --- class folders ---


def test_ignored_files_are_reported(tree):
    for name in ("a.pdf", "b.txt", ".hidden", ".c.txt"):
        (tree / "train" / "bar" / name).touch()
    (tree / "test" / "in no class.png").touch()
    (tree / "test" / ".hidden.png").touch()
    messages = []
    assert counts(read_classes(tree, messages)) == {"train": [6, 6], "test": [3, 3]}
    assert messages == [
        f"warning: ignored 1 file outside the class folders, such as {tree}/test/in no class.png",
        f"warning: ignored 2 files in no image format, such as {tree}/train/bar/a.pdf",
    ]


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX"],
)
def test_folders_of_a_system_hold_neither_classes_nor_images(tree, name):
    for place in (tree, tree / "train", tree / "test" / "bar"):
        (place / name).mkdir()
        (place / name / "a.png").touch()
        (place / "Thumbs.db").touch()
    messages = []
    layout = read_classes(tree, messages)
    assert layout.classes == ("bar", "disc")
    assert counts(layout) == {"train": [6, 6], "test": [3, 3]}
    assert messages == [
        f"ignored 6 system files and folders, such as {min(tree / name, tree / 'Thumbs.db')}"
    ]


def test_names_that_differ_in_case_stay_apart(tmp_path):
    tree = draw_tree(tmp_path / "t", classes=("a", "A"))
    for name in ("B.png", "b.png", "C.PNG"):
        (tree / "train" / "a" / name).touch()
    layout = read_classes(tree)
    assert layout.classes == ("A", "a")
    assert counts(layout)["train"] == [6, 9]


def test_a_class_may_be_named_train(tree):
    (tree / "train" / "bar").rename(tree / "train" / "train")
    layout = read_classes(tree / "train")
    assert (layout.classes, counts(layout)) == (("disc", "train"), {"": [6, 6]})


def test_unicode_forms_of_a_name_are_one_class(tmp_path):
    """macOS and archives made there decompose names; other systems do not."""
    tree = draw_tree(tmp_path / "t", classes=("caf\u00e9", "tea"))
    (tree / "test" / "caf\u00e9").rename(tree / "test" / "cafe\u0301")
    shutil.copytree(tree / "train" / "caf\u00e9", tree / "train" / "cafe\u0301")
    layout = read_classes(tree)
    assert layout.classes == ("caf\u00e9", "tea")
    assert counts(layout) == {"train": [12, 6], "test": [3, 3]}
    assert [file.label for file in layout.files] == [0] * 12 + [1] * 6 + [0] * 3 + [1] * 3


def test_to_evaluate_a_network_its_test_images_are_enough(tree):
    """Also those of a part of its classes, in the order of the network."""
    shutil.rmtree(tree / "train")
    shutil.rmtree(tree / "test" / "bar")
    layout = read_layout(tree, print, ("zebra", "disc", "bar"))
    assert layout.classes == ("zebra", "disc", "bar")
    assert counts(layout) == {"test": [0, 3, 0]}
    with pytest.raises(
        UserError, match=r"the class 'disc', which the network lacks: it knows 2 \(zebra, bar\)"
    ):
        read_layout(tree, print, ("zebra", "bar"))
    (tree / "test").rename(tree / "validation")
    assert counts(read_layout(tree, print, ("disc", "bar"))) == {"test": [3, 0]}


@pytest.mark.parametrize("target", [".", "..", "bar"])
def test_links_that_repeat_images_are_refused(tree, target):
    (tree / "train" / "zebra").symlink_to(target)
    with pytest.raises(UserError, match=r"train/zebra and .*train.* hold the same images; remove"):
        read_classes(tree)


def test_images_below_a_class_folder_belong_to_it(tree):
    below = tree / "train" / "bar" / "zoo" / "day.1"
    below.mkdir(parents=True)
    (below / "RED.PNG").touch()
    (tree / "train" / "bar" / "link").symlink_to(tree / "train" / "disc")
    messages = []
    layout = read_classes(tree, messages)
    assert counts(layout)["train"] == [7, 6]
    assert layout.files[6].path == below / "RED.PNG"
    assert messages == [
        f"warning: ignored 1 file in no image format, such as {tree}/train/bar/link"
    ]


def move(tree: Path, source: str, to: str) -> None:
    (tree / source).rename(tree / to)


SPOILT = {  # how, and what the message must name
    "no test": (lambda tree: move(tree, "test", "other"), "test images with --data_dir {tree}/t"),
    "no train": (lambda tree: move(tree, "train", "other"), "{tree} has test but no train folder"),
    "val and valid": (
        lambda tree: [(tree / name).mkdir() for name in ("val", "valid")],
        "both val and valid; keep one",
    ),
    "loose images": (
        lambda tree: (move(tree, "train", "training"), move(tree, "training/bar", "train")),
        "{tree}/train has no class; two or more are needed, with a folder for each; images",
    ),
    "one class": (
        lambda tree: move(tree, "train/bar", "bar"),
        "only one class, 'disc'; two or more",
    ),
    "empty class": (
        lambda tree: [path.unlink() for path in tree.glob("train/bar/*")],
        "{tree}/train/bar has no images",
    ),
    "strange class": (
        lambda tree: move(tree, "test/bar", "test/zebra"),
        "the class 'zebra'",
    ),
    "empty test": (
        lambda tree: (shutil.rmtree(tree / "test"), (tree / "test").mkdir()),
        "{tree}/test has no class folders",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_folder_that_does_not_fit_is_one_line_that_names_it(tree, how):
    spoil, named = SPOILT[how]
    spoil(tree)
    with pytest.raises(UserError) as caught:
        read_classes(tree)
    assert named.format(tree=tree) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", os.fsdecode(b"latin\xe9")])
def test_class_names_that_cannot_be_printed_are_refused_in_one_line(tree, name):
    try:
        for split in ("train", "test"):
            (tree / split / "disc").rename(tree / split / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(UserError, match="cannot be printed") as caught:
        read_classes(tree)
    assert str(caught.value).isprintable()
