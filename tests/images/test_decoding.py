import os
import pickle
import shutil
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from support.folders import is_red, read, save_red
from support.pictures import draw_tree

from cifarnet.core.errors import UserError
from cifarnet.images import decoding, pictures
from cifarnet.images.decoding import CACHE_NAME

CACHE = CACHE_NAME.format(32)


def test_resized_images_are_told_once(tmp_path):
    messages = []
    train, _ = read(draw_tree(tmp_path / "t", size=(50, 20), suffix="bmp"), messages=messages)
    assert train.images.shape[1:] == (3, 32, 32)
    assert messages == ["resized 18 of 18 images to 32x32"]


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


@pytest.mark.parametrize(("module", "name"), [(decoding, "DECODER"), (PIL, "__version__")])
def test_another_decoder_decodes_again(tree, monkeypatch, module, name):
    read(tree)
    written = (tree / CACHE).stat().st_ino
    read(tree)
    assert (tree / CACHE).stat().st_ino == written
    monkeypatch.setattr(module, name, "another")
    read(tree)
    assert (tree / CACHE).stat().st_ino != written


def test_class_folders_that_change_places_are_decoded_again(tree):
    """Their images keep all their times, which can all be equal."""
    pairs = [(tree / "train" / name, colour) for name, colour in (("bar", "blue"), ("disc", "red"))]
    for path, colour in pairs:
        shutil.rmtree(path)
        path.mkdir()
        Image.new("RGB", (32, 32), colour).save(path / "a.bmp")
        os.utime(path / "a.bmp", (1_700_000_000, 1_700_000_000))
    assert not is_red(read(tree)[0].images[0])
    (bar, _), (disc, _) = pairs
    bar.rename(tree / "moved")
    disc.rename(bar)
    (tree / "moved").rename(disc)
    assert is_red(read(tree)[0].images[0])


def test_without_more_threads_this_one_reads(tree, monkeypatch):
    """As under a limit of processes, `prlimit --nproc`."""
    started, start = [], threading.Thread.start

    def limited_start(thread):
        if len(started) == 1:
            raise RuntimeError("can't start new thread")
        started.append(start(thread))

    expected = read(tree)[0].images
    for cache in tree.glob(".cifarnet*"):
        cache.unlink()
    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", limited_start)
        images = read(tree)[0].images
    assert (len(started), torch.equal(images, expected)) == (1, True)


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


def test_images_of_another_size_have_a_cache_of_their_own(tree, monkeypatch):
    small, large = (read(tree, image_size=size)[0] for size in (32, 64))
    assert large.images.shape[1:] == (3, 64, 64)
    monkeypatch.setattr(pictures, "_decode", None)
    assert torch.equal(read(tree, image_size=64)[0].images, large.images)
    assert torch.equal(read(tree)[0].images, small.images)


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

    monkeypatch.setattr(decoding, "write_atomically", refuse)
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
