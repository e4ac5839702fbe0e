import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import draw_tree

from cifarnet.core.errors import UserError
from cifarnet.images import folder, pictures
from cifarnet.images.folder import CACHE_NAME, read_folder
from cifarnet.images.imageset import Dataset, ImageSet, limited
from cifarnet.settings.data import DataSettings

CACHE = CACHE_NAME.format(32)


def read_all(root, messages=None, **settings) -> Dataset:
    chosen = DataSettings(dataset="folder", data_dir=str(root), **settings)
    return read_folder(chosen, (messages if messages is not None else []).append)


def read(root, skip_bad=False, messages=None, **settings) -> tuple[ImageSet, ImageSet]:
    dataset = read_all(root, messages, skip_bad_images=skip_bad, **settings)
    assert dataset.val is None
    return dataset.train, dataset.test


def save_red(path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(path)


def is_red(image: torch.Tensor) -> bool:
    return image[:, 0, 0].tolist() == [255, 0, 0]


def test_a_folder_is_read_as_it_is(tree):
    train, test = read(tree)
    assert train.classes == test.classes == ("bar", "disc")
    assert (len(train), len(test)) == (12, 6)
    expected = np.asarray(Image.open(tree / "test" / "disc" / "001.png")).transpose(2, 0, 1)
    assert (test.images[4].numpy() == expected).all()
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]


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


def test_resized_images_are_told_once(tmp_path):
    messages = []
    train, _ = read(draw_tree(tmp_path / "t", size=(50, 20), suffix="bmp"), messages=messages)
    assert train.images.shape[1:] == (3, 32, 32)
    assert messages == ["resized 18 of 18 images to 32x32"]


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


# --- images that cannot be read ---


def save_bad_image(path: Path, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a bomb":  # its header claims a width and a height of 60,000 pixels
        Image.new("1", (32, 32)).save(path)
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", 60_000, 60_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
    elif kind == "two lines":
        save_bad_image(path.with_name("two\nlines.png"), "text")
    else:
        whole = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(whole).save(path)
        path.write_bytes(
            {"truncated": path.read_bytes()[:999], "empty": b"", "text": b"not an image"}[kind]
        )


@pytest.mark.parametrize("kind", ["a pipe", "a bomb", "two lines", "truncated", "empty", "text"])
def test_bad_images_are_named_or_skipped(tree, kind):
    save_bad_image(tree / "train" / "bar" / "bad.png", kind)
    with pytest.raises(UserError, match="cannot read the image") as caught:
        read(tree)
    assert str(tree / "train" / "bar") in str(caught.value)
    assert str(caught.value).isprintable()
    for _ in range(2):  # decoded, and from the cache
        messages = []
        train, _ = read(tree, skip_bad=True, messages=messages)
        assert train.labels.tolist() == [0] * 6 + [1] * 6
        assert len(messages) == 1
        assert str(caught.value) == (
            f"{messages[0].removeprefix('skipped: ')}, or add --skip_bad_images; "
            f"1 of the 19 images cannot be read"
        )
    with pytest.raises(UserError, match="cannot read the image"):  # the cache does not hide it
        read(tree)


def test_an_image_that_can_be_read_again_is_used_again(tree, monkeypatch):
    """The file itself may stay as it is: memory was short, a disk was away."""
    with monkeypatch.context() as away:
        away.setattr(Image, "open", lambda file: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(UserError, match="no training image"):
            read(tree, skip_bad=True)
    assert len(read(tree)[0]) == 12


def test_a_replaced_image_of_equal_size_and_time_is_decoded_again(tree):
    first, second = (tree / "train" / name / "000.bmp" for name in ("bar", "disc"))
    for path, colour in ((first, "blue"), (second, "red")):
        Image.new("RGB", (32, 32), colour).save(path)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert not is_red(read(tree)[0].images[0])
    first.write_bytes(second.read_bytes())
    os.utime(first, (1_700_000_000, 1_700_000_000))
    assert is_red(read(tree)[0].images[0])


def test_the_first_bad_image_is_named_and_the_others_counted(tree):
    for name in ("001.png", "004.png"):
        (tree / "train" / "disc" / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"disc/001\.png .*; 2 of the 18 images cannot be read"):
        read(tree)
    assert len(read(tree, skip_bad=True)[0]) == 10


@pytest.mark.parametrize(
    ("where", "what"),
    [("train/disc", "no training image of the class 'disc'"), ("test", "no test")],
)
def test_where_no_image_can_be_read_is_an_error(tree, where, what):
    for path in (tree / where).rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=what):
        read(tree, skip_bad=True)


# --- parts ---


def copy(tree: Path, name: str, to: Path) -> None:
    shutil.copytree(tree / name, to)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_validation_images_beside_train_select_or_are_the_test_images(tree, name):
    (tree / "test").rename(tree / name)
    messages = []
    train, test = read(tree, messages=messages)
    assert (len(train), len(test)) == (12, 6)
    assert messages == [f"{tree / name} holds the test images: there is no test folder"]
    draw_tree(tree.with_name("more"), train=0, test=2)
    copy(tree.with_name("more"), "test", tree / "test")
    messages = []
    dataset = read_all(tree, messages)
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [12, 6, 4]
    assert not [line for line in messages if "holds the test images" in line]


def test_of_class_folders_alone_a_fixed_share_of_each_class_is_held_back(tree):
    messages = []
    train, test = read(tree / "train", messages=messages, test_fraction=0.34)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [0] * 2 + [1] * 2
    assert messages == [
        f"{tree}/train has no test folder: 4 of the 12 images, always the same ones, are the test "
        f"images (--test_fraction 0.34)"
    ]
    again = read(tree / "train", test_fraction=0.34)[1]
    assert torch.equal(again.images, test.images)
    with pytest.raises(UserError, match=r"--test_fraction 0\.1 holds back no image; raise it"):
        read(tree / "train", test_fraction=0.1)


def test_images_in_two_parts_are_counted_and_two_are_named(tree):
    Image.open(tree / "train" / "bar" / "002.png").save(tree / "test" / "bar" / "new.bmp")
    copy(tree, "test", tree / "val")
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


def test_images_of_another_size_have_a_cache_of_their_own(tree, monkeypatch):
    small, large = (read(tree, image_size=size)[0] for size in (32, 64))
    assert large.images.shape[1:] == (3, 64, 64)
    monkeypatch.setattr(pictures, "_decode", None)
    assert torch.equal(read(tree, image_size=64)[0].images, large.images)
    assert torch.equal(read(tree)[0].images, small.images)


# --- the decoded images that are kept ---


def test_decoded_images_are_kept_and_renewed(tree, monkeypatch):
    first, _ = read(tree)
    decoded = []
    original = pictures._decode
    monkeypatch.setattr(
        pictures, "_decode", lambda path, size: decoded.append(path) or original(path, size)
    )
    again, _ = read(tree)
    assert not decoded
    assert torch.equal(again.images, first.images)

    save_red(tree / "train" / "bar" / "000.png")
    changed, _ = read(tree)
    assert len(decoded) == 18
    assert is_red(changed.images[0])

    (tree / "train" / "bar" / "000.png").unlink()
    assert len(read(tree)[0]) == 11


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty", "pickle", "other arrays"])
def test_a_damaged_cache_is_rebuilt(tree, damage):
    first, _ = read(tree)
    cache = tree / CACHE
    content = cache.read_bytes()
    if damage == "truncate":
        cache.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        cache.write_bytes(content[:500] + bytes(len(content) - 500))
    elif damage == "empty":
        cache.write_bytes(b"")
    elif damage == "pickle":
        cache.write_bytes(pickle.dumps({"images": 1}))
    else:
        with cache.open("wb") as file:
            np.savez(file, images=np.zeros(3))
    assert torch.equal(read(tree)[0].images, first.images)
    assert len(cache.read_bytes()) == len(content)


def test_a_tree_that_cannot_be_written_is_decoded_in_memory(tree, monkeypatch):
    def refuse(path, write):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(folder, "write_atomically", refuse)
    messages = []
    assert len(read(tree, messages=messages)[0]) == 12
    assert not (tree / CACHE).exists()
    cache = tree / CACHE
    assert messages == [f"cannot write {cache} (Read-only file system): the next run decodes again"]


def test_a_cache_of_another_tree_is_not_used(tree, tmp_path):
    read(tree)
    other = draw_tree(tmp_path / "other")
    save_red(other / "train" / "bar" / "000.png")
    (other / CACHE).write_bytes((tree / CACHE).read_bytes())
    assert is_red(read(other)[0].images[0])
