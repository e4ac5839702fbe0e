import shutil
from pathlib import Path

import pytest
from support.folders import touch

from cifarnet.core.errors import UserError
from cifarnet.images.layout import read_layout
from cifarnet.images.parts import holds_classes, named_parts, part_folders, would_read


def test_folders_of_images_are_told_from_others(tree, tmp_path):
    assert holds_classes(tree)
    assert holds_classes(tree / "train")
    assert not holds_classes(tree / "train" / "bar")
    assert not holds_classes(tmp_path)  # data sets beside each other
    assert not holds_classes(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("folder", "read"),
    [
        *((".", False), ("plots", False), ("../plots", False), ("train/.runs/plots", False)),
        *(("train", True), ("train/plots", True), ("test/bar/plots", True), ("link/plots", True)),
    ],
)
def test_where_a_report_would_become_images(tree, folder, read):
    (tree / "link").symlink_to(tree / "train")
    assert would_read(tree, tree / folder) == read
    shutil.rmtree(tree / "test")
    (tree / "train").rename(tree.parent / "classes")
    (tree.parent / "classes" / "runs").symlink_to(tree)
    for inside in (".", "plots", "bar/plots", "runs/plots"):
        assert would_read(tree.parent / "classes", tree.parent / "classes" / inside)
    assert not would_read(tree.parent / "classes", tree / "plots")


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("train", ["train", "Training", "training_set", "seg_train", "train2017", "Train-Data"]),
        (
            "train",
            ["TRAIN", "TrainImages", "traindata", "fruits 360 training", "01-train", "trainA"],
        ),
        ("test", ["test", "Testing", "test_set", "TestSet", "seg-test", "test2014", "my.test"]),
        ("val", ["val", "valid", "Validation", "validation_set", "val2017", "ValidSet"]),
        (None, ["seg_pred", "trains", "contest", "latest", "interval", "validated", "trainval"]),
        (None, ["train station", "test tube", "Train-Tracks", "test_tube_2", "testTube"]),
        (None, ["train_val", "train-test", "restrain", "testament", "a", ""]),
    ],
)
def test_the_names_of_folders_say_their_part(part, names):
    assert {name: named_parts([name]).get(name) for name in names} == dict.fromkeys(names, part)


def rename(tree: Path, names: dict[str, str]) -> None:
    """Moves the folders train and test of `tree`; "a/b" makes a folder in a folder."""
    for former, name in names.items():
        moved = (tree / former).rename(tree / f"moved {former}")
        (tree / name).parent.mkdir(exist_ok=True)
        moved.rename(tree / name)


SPLITS = [
    ("Training", "Testing"),
    ("training_set", "test_set"),
    ("seg_train", "seg_test"),
    ("seg_train/seg_train", "seg_test/seg_test"),
    ("training_set/training_set", "test_set/test"),
    ("train2017", "val2017"),
    ("Train-Images", "VALIDATION-Images"),
    ("train", "my test"),
    ("train/train", "test/test"),
    ("train-jpg", "test-jpg"),
    ("cifar10 train v2/train", "cifar10 Val v2"),
]


@pytest.mark.parametrize(("train", "test"), SPLITS)
def test_split_folders_are_parts_and_no_classes(tree, train, test):
    rename(tree, {"train": train, "test": test})
    (tree / test.partition("/")[0] / "readme.txt").touch()
    messages = []
    layout = read_layout(tree, messages.append)
    assert layout.classes == ("bar", "disc")
    assert [(file.part, file.label) for file in layout.files] == [
        *[("train", 0)] * 6,
        *[("train", 1)] * 6,
        *[("test", 0)] * 3,
        *[("test", 1)] * 3,
    ]
    assert holds_classes(tree)
    if train == "Training":
        assert messages == [f"parts of {tree}: Testing is test, Training is train"]


def test_a_run_says_which_folder_is_which_part(tree, command):
    rename(tree, {"train": "Training", "test": "Testing"})
    (tree / "Training" / "@eaDir").mkdir()
    flags = ("--dataset", "folder", "--data_dir", tree, "--preview_augment", "grid.png")
    done = command("main", *flags)
    assert (done.code, done.err) == (0, "")
    assert f"parts of {tree}: Testing is test, Training is train\n" in done.out
    assert f"ignored 1 system file or folder, such as {tree}/Training/@eaDir\n" in done.out


def test_validation_images_and_folders_beside_the_parts(tree):
    shutil.copytree(tree / "test", tree / "valid_set")
    rename(tree, {"train": "train_set", "test": "test_set"})
    (tree / "seg_pred").mkdir()
    messages = []
    layout = read_layout(tree, messages.append)
    parts = [file.part for file in layout.files]
    assert [parts.count(part) for part in ("train", "test", "val")] == [12, 6, 6]
    assert messages[1] == (
        f"warning: ignored what is neither train, test nor val in {tree}: seg_pred"
    )


@pytest.mark.parametrize(
    "names",
    [("first", "second"), ("2017", "2018"), ("train_a", "train_b"), ("Training", "other")],
    ids=str,
)
def test_parts_by_other_names_are_refused_in_one_line(tree, command, names):
    shutil.rmtree(tree / "test")
    shutil.copytree(tree / "train", tree / "test")
    rename(tree, dict(zip(("train", "test"), names, strict=True)))
    done = command("main", "--dataset", "folder", "--data_dir", tree)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert all(name in done.err.replace(str(tree), "") for name in names)


def test_a_loose_image_beside_the_classes_changes_no_part(tree):
    rename(tree, {"train": "Training", "test": "Testing"})
    touch(tree, "Testing/0.png")
    messages = []
    layout = read_layout(tree, messages.append)
    assert [file.part for file in layout.files] == ["train"] * 12 + ["test"] * 6
    assert "ignored 1 file outside the class folders" in messages[1]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("Training/a Training/b Testing", "Training and Testing look like parts, not classes"),
        ("Training/a Training/b val_set/c val_set/d", "Training and val_set look like parts"),
        ("trainA trainB testA testB", "trainB and testB look like parts, not classes"),
        ("train-jpg test-jpg", "train-jpg and test-jpg look like parts, not classes"),
        ("Training/Cat Training/Dog Testing/cat Testing/dog", "the class 'cat', which train lacks"),
        ("2019/cat 2019/dog 2020/bird 2020/cat 2020/dog", "same folders (cat, dog)"),
        ("2019/cat 2019/dog 2020/Cat 2020/DOG more/x", "2019 and 2020 hold the same folders"),
    ],
)
def test_parts_are_not_taken_for_classes(tmp_path, names, why):
    touch(tmp_path, *(f"{name}/0.png" for name in names.split()))
    with pytest.raises(UserError) as caught:
        read_layout(tmp_path, print)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stations_and_tubes_are_classes(tmp_path):
    names = ("train station/day/0.png", "test tube/day/0.png", "car/0.png")
    touch(tmp_path, *names)
    assert read_layout(tmp_path, print).classes == ("car", "test tube", "train station")


@pytest.mark.parametrize("name", ["Testing", "seg_test/seg_test", "val2017"])
def test_the_classes_of_a_network_tell_a_test_folder(tree, name):
    shutil.rmtree(tree / "train")
    rename(tree, {"test": name})
    layout = read_layout(tree, print, ("disc", "zebra", "bar"))
    assert [(file.part, file.label) for file in layout.files] == [("test", 0)] * 3 + [
        ("test", 2)
    ] * 3


def test_a_class_of_a_network_is_no_part(tmp_path):
    touch(tmp_path, "my test/cat/0.png", "cat/0.png")
    classes = ("cat", "my test")
    assert {file.part for file in read_layout(tmp_path, print, classes).files} == {""}


def test_class_folders_with_folders_in_them_stay_classes(tmp_path):
    """Of another name in each, or one of the same name, as train/n01443537/images."""
    touch(tmp_path, "cat/images/a.png", "dog/images/a.png", "test tube/a.png", "train/a.png")
    assert read_layout(tmp_path, print).classes == ("cat", "dog", "test tube", "train")
    assert part_folders(tmp_path) == {}


def test_two_folders_of_one_part_are_refused(tree):
    shutil.copytree(tree / "train", tree / "train2014")
    assert part_folders(tree)["train"] == tree / "train"  # the exact name counts
    (tree / "train").rename(tree / "train2017")
    with pytest.raises(UserError, match=r"has both train2014 and train2017; keep one"):
        part_folders(tree)


@pytest.mark.parametrize("name", ["bird", "St. Bernard", "val", "train/bird", "train/train/bird"])
def test_a_broken_link_that_may_have_been_a_folder_is_refused(tmp_path, name):
    """Else a class, or the validation images, would be missing without a word."""
    place = tmp_path / name
    for part in ("train", "test") if name.startswith("train") else ("",):
        touch(tmp_path / part, "cat/0.png", "dog/0.png")
    place.parent.mkdir(parents=True, exist_ok=True)
    if name == "train/train/bird":
        for kind in ("cat", "dog"):
            (tmp_path / "train" / kind).rename(place.with_name(kind))
    place.symlink_to(tmp_path / "on a disk that is not there")
    with pytest.raises(UserError, match=f"{name} is a broken link; repair or remove it"):
        read_layout(tmp_path, print)


def test_a_broken_link_to_an_image_or_in_a_class_is_no_lost_class(tmp_path):
    touch(tmp_path, "cat/0.png", "dog/0.png")
    for name in ("cat/notes.txt", "1.png"):
        (tmp_path / name).symlink_to(tmp_path / "on a disk that is not there")
    assert holds_classes(tmp_path)
    assert read_layout(tmp_path, print).classes == ("cat", "dog")
