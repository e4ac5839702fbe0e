import unicodedata
from pathlib import Path

import pytest
from support.folders import touch

from cifarnet.core.errors import UserError
from cifarnet.images.labels import read_labels
from cifarnet.images.layout import Layout


@pytest.fixture
def loose(tmp_path) -> Path:
    """Six images without class folders."""
    root = tmp_path / "loose"
    touch(root, *(f"{i}.png" for i in range(6)))
    return root


def read(root: Path, text: str, messages=None, where: Path | None = None, classes=()) -> Layout:
    labels = (where or root) / "labels.csv"
    labels.write_text(text, encoding="utf-8")
    return read_labels(root, labels, (messages if messages is not None else []).append, classes)


def entries(layout: Layout) -> list[tuple[str, str, str]]:
    return [(file.path.name, file.part, layout.classes[file.label]) for file in layout.files]


@pytest.mark.parametrize(
    "text",
    [
        "0.png,cat\n1.png,dog\n",
        "path,label\n0.png,cat\n1.png,dog",
        "\ufeffimage,class\r\n\r\n 0.png , cat \r\n1.png,dog\r\n",
        '"1.png","dog"\n"0.png","cat"\n0.png,cat\n',
        "path;label\r\n0.png;cat\r\n1.png;dog\r\n",
        "0.png\tcat\n1.png\tdog\n",
        '0.png, "cat"\n1.png,dog\n',
        '\n"path";"label, or class"\n0.png;cat\n1.png;dog\n',
    ],
)
def test_a_csv_file_names_images_and_their_classes(loose, text):
    assert entries(read(loose, text)) == [("0.png", "", "cat"), ("1.png", "", "dog")]


def test_a_comma_in_a_path_leaves_the_semicolons_the_delimiters(loose):
    (loose / "a, b.png").touch()
    assert entries(read(loose, "a, b.png;cat\n1.png;dog\n")) == [
        ("a, b.png", "", "cat"),
        ("1.png", "", "dog"),
    ]


def test_the_line_that_is_taken_for_a_header_is_named(loose):
    messages = []
    read(loose, "gone,cat\n0.png,cat\n1.png,dog\n", messages)
    assert [text.partition("labels.csv: ")[2] for text in messages] == [
        "the first line, gone,cat, is a header"
    ]


def test_paths_start_from_the_file_or_from_the_folder(loose, tmp_path):
    (tmp_path / "beside.png").touch()
    text = f"beside.png,a\nloose/1.png,a\n0.png,b\n{loose}/2.png,b\nnowhere.png,b\n"
    layout = read(loose, text, where=tmp_path)
    assert [file.path for file in layout.files] == [
        *(tmp_path / "beside.png", tmp_path / "loose/1.png"),
        *(loose / "0.png", loose / "2.png", loose / "nowhere.png"),  # decoding names the last one
    ]


def test_images_in_part_folders_keep_their_part(loose):
    touch(loose, "train/a.png", "train/x/b.png", "valid/c.png", "test/d.png")
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
    with pytest.raises(UserError, match=r"0\.png is not in a folder of training"):
        read(loose, text + "test/d.png,2\n0.png,1\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.png,a\n1.png\n", "line 2: not a path and a label; write path,label"),
        ("0.png a\n1.png b\n", "line 1: not a path and a label"),
        ("0.png,a\n1.png,b,3,4\n", "line 2: not a path and a label"),
        ("0.png,a\n1.png,\n", "line 2: not a path and a label"),
        ("0.png,a\n1.png,b\n0.png,b\n", "line 3: '0.png' is 'b' here but 'a' in line 1; keep"),
        ("0.png,a\n1.png,a\n", "has only one class, 'a'; two or more are needed"),
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
            read_labels(loose, loose / name, print)


def test_a_link_belongs_to_the_folder_that_it_lies_in(loose):
    for name in ("train/a.png", "test/b.png"):
        (loose / name).parent.mkdir()
        (loose / name).symlink_to(loose / "0.png")
    layout = read(loose, "train/a.png,1\ntest/b.png,2\n")
    assert entries(layout) == [("a.png", "train", "1"), ("b.png", "test", "2")]


@pytest.mark.parametrize(
    ("train", "test"),
    [("training_set", "test_set"), ("train2017", "val2017"), ("seg_train/x", "T-Test")],
)
def test_folders_whose_names_say_their_part_keep_it(loose, train, test):
    touch(loose, f"{train}/a.png", f"{train}/b.png", f"{test}/c.png")
    text, messages = f"{train}/a.png,1\n{train}/b.png,2\n{test}/c.png,1\n", []
    layout = read(loose, text, messages)
    assert [part for _, part, _ in entries(layout)] == ["train", "train", "test"]
    assert messages[0].startswith(f"parts of {loose}: ")
    assert {part for _, part, _ in entries(read(loose, text + "0.png,1\n"))} == {""}


def test_stations_and_tubes_are_no_parts(loose):
    names = ("train station/a.png", "train station/b.png", "test tube/c.png")
    touch(loose, *names)
    layout = read(loose, "".join(f"{name},{name[:4]}\n" for name in names))
    assert [part for _, part, _ in entries(layout)] == ["", "", ""]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_of_a_name_are_one_name(loose, form):
    """macOS and archives made there decompose names; other systems do not."""
    cafe, other = (
        unicodedata.normalize(f, "caf\u00e9") for f in (form, "NFD" if form == "NFC" else "NFC")
    )
    touch(loose, f"{cafe}/{cafe}.png")
    layout = read(loose, f"{other}/{other}.png,{cafe}\n0.png,{other}\n1.png,b\n")
    assert layout.classes == ("b", "caf\u00e9")
    assert [(file.path, file.label) for file in layout.files] == [
        (loose / "1.png", 0),
        (loose / "0.png", 1),
        (loose / cafe / f"{cafe}.png", 1),
    ]


def test_paths_may_be_written_as_on_windows(loose):
    touch(loose, "img/a.png", "img/b c.png")
    layout = read(loose, "img\\a.png,x\nimg\\b c.png,y\n")
    assert entries(layout) == [("a.png", "", "x"), ("b c.png", "", "y")]


def test_images_in_one_part_only_are_split_to_train(loose):
    touch(loose, "test/a.png", "test/b.png")
    layout = read(loose, "test/a.png,1\ntest/b.png,2\n")
    assert entries(layout) == [("a.png", "", "1"), ("b.png", "", "2")]


def test_the_classes_of_a_network_to_evaluate_are_those_of_the_labels(loose):
    touch(loose, "test/a.png")
    layout = read(loose, "test/a.png,b\n", classes=("c", "b", "a"))
    assert (layout.classes, entries(layout)) == (("c", "b", "a"), [("a.png", "test", "b")])
    assert entries(read(loose, "0.png,a\ntest/a.png,b\n", classes=("b", "a")))[0][1] == ""
    with pytest.raises(UserError, match=r"line 2: the network has no class 'z'"):
        read(loose, "0.png,a\n1.png,z\n", classes=("b", "a"))
