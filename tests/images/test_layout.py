import os
import shutil
from pathlib import Path

import pytest
from support.pictures import draw_tree

from cifarnet.core.errors import UserError
from cifarnet.images.layout import Layout, holds_classes, read_layout


def read_classes(root: Path, messages: list[str] | None = None) -> Layout:
    return read_layout(root, None, (messages if messages is not None else []).append)


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
    layout = read_classes(tree)
    assert layout.classes == ("bar", "disc")
    assert counts(layout) == {"train": [6, 6], "test": [3, 3]}


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
    "missing": (lambda tree: move(tree, "", "../elsewhere"), "{tree}"),
    "file": (lambda tree: (move(tree, "", "../elsewhere"), tree.touch()), "is a file"),
    "no test": (lambda tree: move(tree, "test", "testing"), "test images with --data_dir {tree}/t"),
    "no train": (lambda tree: move(tree, "train", "training"), "{tree} has test but no train fold"),
    "val and valid": (
        lambda tree: [(tree / name).mkdir() for name in ("val", "valid")],
        "both val and valid; keep one",
    ),
    "loose images": (
        lambda tree: (move(tree, "train", "training"), move(tree, "training/bar", "train")),
        "{tree}/train has no class; it needs two or more, with a folder for each; images",
    ),
    "one class": (lambda tree: move(tree, "train/bar", "bar"), "only one class, 'disc'; it needs"),
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


# --- a CSV file ---


@pytest.fixture
def loose(tmp_path) -> Path:
    """Six images without class folders."""
    root = tmp_path / "loose"
    root.mkdir()
    for i in range(6):
        (root / f"{i}.png").touch()
    return root


def read(root: Path, text: str, messages=None, where: Path | None = None) -> Layout:
    labels = (where or root) / "labels.csv"
    labels.write_text(text, encoding="utf-8")
    return read_layout(root, labels, (messages if messages is not None else []).append)


def entries(layout: Layout) -> list[tuple[str, str, str]]:
    return [(file.path.name, file.part, layout.classes[file.label]) for file in layout.files]


@pytest.mark.parametrize(
    "text",
    [
        "0.png,cat\n1.png,dog\n",
        "path,label\n0.png,cat\n1.png,dog",
        "\ufeffimage,class\r\n\r\n 0.png , cat \r\n1.png,dog\r\n",
        '"1.png","dog"\n"0.png","cat"\n0.png,cat\n',
    ],
)
def test_a_csv_file_names_images_and_their_classes(loose, text):
    assert entries(read(loose, text)) == [("0.png", "", "cat"), ("1.png", "", "dog")]


def test_paths_start_from_the_file_or_from_the_folder(loose, tmp_path):
    (tmp_path / "beside.png").touch()
    text = f"beside.png,a\nloose/1.png,a\n0.png,b\n{loose}/2.png,b\nnowhere.png,b\n"
    layout = read(loose, text, where=tmp_path)
    assert [file.path for file in layout.files] == [
        *(tmp_path / "beside.png", tmp_path / "loose/1.png"),
        *(loose / "0.png", loose / "2.png", loose / "nowhere.png"),  # decoding names the last one
    ]


def test_images_in_part_folders_keep_their_part(loose):
    for name in ("train/a.png", "train/x/b.png", "valid/c.png", "test/d.png"):
        (loose / name).parent.mkdir(parents=True, exist_ok=True)
        (loose / name).touch()
    text = "train/a.png,1\ntrain/x/b.png,2\n"
    assert {part for _, part, _ in entries(read(loose, text))} == {""}  # test images have no labels
    messages = []
    layout = read(loose, text + "valid/c.png,1\n", messages)
    assert entries(layout) == [
        ("a.png", "train", "1"),
        ("b.png", "train", "2"),
        ("c.png", "test", "1"),
    ]
    assert messages == [f"{loose}/valid holds the test images: there is no test folder"]
    layout = read(loose, text + "test/d.png,2\nvalid/c.png,1\n")
    assert [part for _, part, _ in entries(layout)] == ["train", "train", "test", "val"]
    with pytest.raises(UserError, match=r"0\.png lies outside the folders"):
        read(loose, text + "test/d.png,2\n0.png,1\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.png,a\n1.png\n", "line 2: not a path and a label; write path,label"),
        ("0.png;a\n1.png;b\n", "line 1: not a path and a label"),
        ("0.png,a\n1.png,b,3,4\n", "line 2: not a path and a label"),
        ("0.png,a\n1.png,\n", "line 2: not a path and a label"),
        ("0.png,a\n1.png,b\n0.png,b\n", "line 3: '0.png' is 'b' here but 'a' in line 1; keep"),
        ("0.png,a\n1.png,a\n", "has only one class, 'a'; it needs two"),
        ("", "none of its 0 paths is a file"),
        ("path,label\nx.png,a\ny.png,b\n", "none of its 2 paths is a file; write them relative"),
        ('0.png,"a\nb"\n1.png,b\n', "has a class name that cannot be printed, 'a\\nb'"),
        ('0.png,"a', "is not a CSV file in UTF-8"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_one_line(loose, text, why):
    with pytest.raises(UserError) as caught:
        read(loose, text)
    assert why in str(caught.value)
    assert "labels.csv" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_csv_file_that_cannot_be_read_is_named(loose):
    (loose / "latin.csv").write_bytes("0.png,\xe9t\xe9".encode("latin-1"))
    for name, why in (("nowhere.csv", "No such file"), ("latin.csv", "not a CSV file in UTF-8")):
        with pytest.raises(UserError, match=rf"--labels .*{name}.*{why}"):
            read_layout(loose, loose / name, print)


def test_folders_of_images_are_told_from_others(tree, tmp_path):
    assert holds_classes(tree)
    assert holds_classes(tree / "train")
    assert not holds_classes(tree / "train" / "bar")
    assert not holds_classes(tmp_path)  # data sets beside each other
    assert not holds_classes(tmp_path / "nowhere")


def test_a_link_belongs_to_the_folder_that_it_lies_in(loose):
    for name in ("train/a.png", "test/b.png"):
        (loose / name).parent.mkdir()
        (loose / name).symlink_to(loose / "0.png")
    layout = read(loose, "train/a.png,1\ntest/b.png,2\n")
    assert entries(layout) == [("a.png", "train", "1"), ("b.png", "test", "2")]
