import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.folders import is_red, read, read_all, save_red
from support.pictures import draw_tree

from cifarnet.core.errors import UserError
from cifarnet.images.folder import read_folder
from cifarnet.images.imageset import limited
from cifarnet.settings.data import DataSettings


def test_a_folder_is_read_as_it_is(tree):
    train, test = read(tree)
    assert train.classes == test.classes == ("bar", "disc")
    assert (len(train), len(test)) == (12, 6)
    expected = np.asarray(Image.open(tree / "test" / "disc" / "001.png")).transpose(2, 0, 1)
    assert (test.images[4].numpy() == expected).all()
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_what_is_no_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    for name, why in (("nowhere", "does not exist"), ("file", "is a file")):
        with pytest.raises(UserError, match=f"--data_dir .*{name} {why}"):
            read(tmp_path / name)


def test_the_test_images_know_their_files(tree):
    (tree / "test" / "disc" / "001.png").rename(tree / "test" / "disc" / "odd\n\udcff.png")
    (tree / "test" / "bar" / "000.png").write_text("damaged")
    _, test = read(tree, skip_bad=True)
    expected = ["bar/001.png", "bar/002.png", "disc/000.png", "disc/002.png"]
    expected.append("disc/odd\\n\\udcff.png")  # what cannot be printed is an escape
    assert test.paths.tolist() == [f"test/{name}" for name in expected]
    few = limited(test, 2, "--limit_test")
    assert len(few.paths) == 2
    for image, path in zip(few.images, few.paths, strict=True):
        pixels = np.asarray(Image.open(tree / path.encode().decode("unicode_escape")))
        assert (image.numpy() == pixels.transpose(2, 0, 1)).all()


def test_a_class_without_test_images_is_told(tree):
    (tree / "test" / "disc").rename(tree / "elsewhere")
    messages = []
    assert read(tree, messages=messages)[1].labels.tolist() == [0, 0, 0]
    assert [line.partition(":")[2] for line in messages if "lack disc" in line]


def test_links_are_followed_and_broken_ones_named(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    save_red(outside / "red.png")
    (tree / "train" / "bar" / "zz.png").symlink_to(outside / "red.png")
    (tree / "train" / "disc").rename(outside / "disc")
    (tree / "train" / "disc").symlink_to(outside / "disc")
    train, _ = read(tree)
    assert train.labels.tolist() == [0] * 7 + [1] * 6
    assert is_red(train.images[6])
    (outside / "red.png").unlink()
    with pytest.raises(UserError, match=r"zz\.png \(missing, or a broken link\)"):
        read(tree)
    (tree / "train" / "bar" / "zz.png").unlink()
    (tree / "train" / "bar" / "zz.png").symlink_to("zz.png")
    with pytest.raises(UserError, match=r"zz\.png"):
        read(tree)


# --- parts ---


def test_a_network_is_evaluated_without_training_images(tree):
    network = ("zebra", "disc", "bar")
    settings = DataSettings(dataset="folder", data_dir=str(tree / "train"), test_fraction=1.0)
    with pytest.raises(UserError, match="--test_fraction 1 holds out every image; lower it"):
        read_folder(settings, print)
    messages = []
    dataset = read_folder(settings, messages.append, network)
    assert (len(dataset.train), dataset.val, len(dataset.test)) == (0, None, 12)
    assert dataset.test.classes == network
    assert dataset.test.labels.bincount(minlength=3).tolist() == [0, 6, 6]
    assert messages == [
        f"warning: the test images of {tree}/train lack zebra: their metrics are 0, and averages "
        f"include them"
    ]


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_validation_images_beside_train_select_or_are_the_test_images(tree, name):
    (tree / "test").rename(tree / name)
    messages = []
    train, test = read(tree, messages=messages)
    assert (len(train), len(test)) == (12, 6)
    assert messages == [f"{tree / name} holds the test images: there is no test folder"]
    draw_tree(tree.with_name("more"), train=0, test=2)
    shutil.copytree(tree.with_name("more") / "test", tree / "test")
    messages = []
    dataset = read_all(tree, messages)
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [12, 6, 4]
    assert not [line for line in messages if "holds the test images" in line]


def test_of_class_folders_alone_a_fixed_share_of_each_class_is_held_out(tree):
    messages = []
    train, test = read(tree / "train", messages=messages, test_fraction=0.34)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [0] * 2 + [1] * 2
    assert messages == [
        f"{tree}/train has no test folder: 4 of the 12 images are the test images, the same ones "
        f"until files are added or removed (--test_fraction 0.34)"
    ]
    again = read(tree / "train", test_fraction=0.34)[1]
    assert torch.equal(again.images, test.images)
    with pytest.raises(UserError, match=r"--test_fraction 0\.1 holds out no image; raise it"):
        read(tree / "train", test_fraction=0.1)


def test_images_in_two_parts_are_counted_and_two_are_named(tree):
    Image.open(tree / "train" / "bar" / "002.png").save(tree / "test" / "bar" / "new.bmp")
    shutil.copytree(tree / "test", tree / "val")
    messages = []
    read_all(tree, messages)
    assert messages == [
        f"warning: 1 {part} images are training images too, such as {tree}/{part}/bar/new.bmp and "
        f"{tree}/train/bar/002.png: accuracy on them is too high; remove them from one part"
        for part in ("val", "test")
    ]
    (tree / "test" / "bar" / "new.bmp").write_bytes(b"")  # unreadable ones are all alike, but none
    (tree / "train" / "bar" / "002.png").write_bytes(b"")
    messages = []
    read_all(tree, messages, skip_bad_images=True)
    assert not [line for line in messages if "too high" in line]


def test_paths_keep_the_spaces_of_screenshots(tree):
    """A report and a comparison read such files again."""
    name = "test/bar/Screenshot at 3.45\u202fPM.png"
    (tree / "test" / "bar" / "000.png").rename(tree / name)
    assert name in read(tree)[1].paths.tolist()
