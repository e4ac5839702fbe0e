import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_tree, seen_by_others
from PIL import Image

from cifarnet.core.errors import UserError
from cifarnet.core.settings import Settings
from cifarnet.images import pictures as data
from cifarnet.images.folder import CACHE_NAME
from cifarnet.images.imageset import channel_statistics, hold_back
from cifarnet.images.pictures import read_image
from data import load_splits


def load(said=None, **settings):
    return load_splits(Settings(**settings), (said if said is not None else []).append)


def test_digits_are_real_images_in_the_house_format():
    splits = load(dataset="digits")
    assert splits.name == "digits"
    assert len(splits.train) + len(splits.test) == 1797
    assert abs(len(splits.test) / 1797 - 0.2) < 0.01
    for part in (splits.train, splits.test):
        assert part.images.dtype is torch.uint8
        assert part.images.shape[1:] == (3, 32, 32)
        assert part.labels.dtype is torch.int64
        assert part.classes == tuple("0123456789")
        assert torch.equal(part.images[:, 0], part.images[:, 2])
    assert splits.train.images.max() == 255
    overlap = {bytes(i.numpy()) for i in splits.train.images} & {
        bytes(i.numpy()) for i in splits.test.images
    }
    assert not overlap


def test_statistics_are_those_of_the_pixels():
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)))
    assert min(channel_statistics(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))[1]) > 0


def test_limits_are_balanced_and_fixed():
    splits = load(dataset="digits", limit_train=105, limit_test=20)
    counts = splits.train.labels.bincount(minlength=10)
    assert counts.sum() == 105
    assert counts.max() - counts.min() == 1
    assert (splits.test.labels.bincount(minlength=10) == 2).all()
    assert torch.equal(
        load(dataset="digits", limit_train=105, seed=7).train.images, splits.train.images
    )
    assert len(load(dataset="digits", limit_train=10**6).train) == len(load(dataset="digits").train)
    with pytest.raises(UserError, match="--limit_test 9 is fewer than the 10 classes"):
        load(dataset="digits", limit_test=9)


@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.5, 0.999])
def test_the_held_back_part_is_stratified_and_apart(fraction):
    everything = load(dataset="digits").train
    rest, held = hold_back(everything, fraction)
    assert len(rest) + len(held) == len(everything)
    expected = (everything.labels.bincount() * fraction + 1e-9).floor()
    assert torch.equal(held.labels.bincount(minlength=10), expected.long())
    both = sorted([bytes(i.numpy()) for i in rest.images] + [bytes(i.numpy()) for i in held.images])
    assert both == sorted(bytes(i.numpy()) for i in everything.images)


def test_a_share_too_small_to_hold_anything_back(tree):
    with pytest.raises(UserError, match="holds back no image"):
        load(dataset="folder", data_dir=str(tree), val_fraction=0.01)


# --- folders ---


def test_a_folder_is_read_as_it_is(tree):
    splits = load(dataset="folder", data_dir=str(tree))
    assert splits.name == "pictures"
    assert splits.train.classes == ("bar", "disc")
    assert (len(splits.train), len(splits.test)) == (12, 6)
    path = tree / "test" / "disc" / "001.png"
    expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
    assert (splits.test.images[4].numpy() == expected).all()
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert load(dataset="folder", data_dir=str(tree), dataset_name="mine").name == "mine"


def test_decoded_images_are_kept_and_renewed(tree, monkeypatch):
    first = load(dataset="folder", data_dir=str(tree))
    decoded = []
    original = data._decode
    monkeypatch.setattr(data, "_decode", lambda path: decoded.append(path) or original(path))
    again = load(dataset="folder", data_dir=str(tree))
    assert not decoded
    assert torch.equal(again.train.images, first.train.images)

    Image.new("RGB", (32, 32), "red").save(tree / "train" / "bar" / "000.png")
    changed = load(dataset="folder", data_dir=str(tree))
    assert len(decoded) == 18
    assert changed.train.images[0, :, 0, 0].tolist() == [255, 0, 0]

    (tree / "train" / "bar" / "000.png").unlink()
    assert len(load(dataset="folder", data_dir=str(tree)).train) == 11


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty", "pickle", "other arrays"])
def test_a_damaged_cache_is_rebuilt(tree, damage):
    first = load(dataset="folder", data_dir=str(tree))
    cache = tree / CACHE_NAME
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
    assert torch.equal(load(dataset="folder", data_dir=str(tree)).train.images, first.train.images)
    assert len(cache.read_bytes()) == len(content)


def test_a_tree_that_cannot_be_written_is_decoded_in_memory(tree, monkeypatch):
    def refuse(path, write):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(data, "write_atomically", refuse)
    said = []
    assert len(load(said, dataset="folder", data_dir=str(tree)).train) == 12
    assert not (tree / CACHE_NAME).exists()
    assert "in memory only" in said[0]


def test_files_that_are_no_images_by_their_names_are_left_out_and_said(tree):
    for name in ("a.tif", "b.txt", ".hidden", ".c.txt"):
        (tree / "train" / "bar" / name).touch()
    (tree / "test" / "disc" / "below.png.d").mkdir()
    (tree / "test" / "in no class.png").touch()
    (tree / "test" / ".hidden.png").touch()
    said = []
    assert len(load(said, dataset="folder", data_dir=str(tree)).train) == 12
    assert said == [
        f"warning: left out as in no class's folder: 1, such as {tree}/test/in no class.png",
        f"warning: left out as no images by their names (.bmp, .jpeg, .jpg, .png, .webp): 3, such as {tree}/train/bar/a.tif",
    ]


def test_other_sizes_are_resized_and_said_once(tmp_path):
    said = []
    splits = load(
        said, dataset="folder", data_dir=str(draw_tree(tmp_path / "t", size=(50, 20), suffix="bmp"))
    )
    assert splits.train.images.shape[1:] == (3, 32, 32)
    assert said == ["resized 18 of 18 images to 32x32"]


def test_pictures_of_floats_are_refused_in_words(tmp_path):
    Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match="its pixels are floats"):
        read_image(tmp_path / "image.tif")


def save_image(path: Path, kind: str) -> None:
    grey = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    if kind == "16-bit":
        Image.fromarray(grey).save(path)
    elif kind == "palette":
        Image.fromarray((grey // 256).astype(np.uint8)).convert("P").save(path)
    elif kind == "transparent":
        image = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
        image.paste((200, 100, 50, 255), (0, 0, 16, 32))
        image.save(path)
    elif kind == "cmyk":
        Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(path, "JPEG")
    elif kind == "exif":
        image = Image.new("RGB", (32, 32), "black")
        image.paste("white", (0, 0, 32, 16))  # white above
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
        image.save(path, "PNG", exif=exif)
    elif kind == "grey":
        Image.fromarray((grey // 256).astype(np.uint8)).save(path)


@pytest.mark.parametrize("kind", ["16-bit", "palette", "transparent", "cmyk", "exif", "grey"])
def test_images_of_every_mode_are_read_as_one_sees_them(tmp_path, kind):
    path = tmp_path / "image.png"
    save_image(path, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, size = read_image(path)
    assert size == (32, 32)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 32, 32)
    if kind in ("16-bit", "grey", "palette"):
        expected = np.arange(32 * 32).reshape(32, 32) * 64 / 257
        assert np.abs(pixels - expected).max() <= 1
    elif kind == "transparent":
        assert pixels[:, 0, 0].tolist() == [200, 100, 50]
        assert pixels[:, 0, 31].tolist() == [0, 0, 0]
    elif kind == "cmyk":
        assert pixels[0].min() > 200
        assert pixels[1].max() < 60
    elif kind == "exif":
        assert pixels[:, :, 31].min() == 255
        assert pixels[:, :, 0].max() == 0


def smooth(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("size", [(32, 32), (50, 20), (517, 300)], ids=str)
def test_pictures_are_what_opencv_and_torch_make_of_them(tmp_path, suffix, size):
    path = tmp_path / f"picture.{suffix}"
    smooth(*size).save(path, lossless=True)
    assert np.abs(read_image(path)[0] - seen_by_others(path)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_opencvs(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(40, 24).save(tmp_path / "picture.jpg", exif=exif)
    assert (
        np.abs(
            read_image(tmp_path / "picture.jpg")[0] - seen_by_others(tmp_path / "picture.jpg")
        ).max()
        <= 1
    )


def spoil(tree: Path, how: str) -> str:
    """Damages the tree and returns what the message must name."""
    if how == "missing":
        return str(tree.rename(tree.with_name("elsewhere")).with_name("pictures"))
    if how == "file":
        tree.rename(tree.with_name("elsewhere"))
        tree.write_text("")
        return "is a file"
    if how == "no test":
        (tree / "test").rename(tree / "testing")
        return str(tree / "test")
    if how == "no train":
        (tree / "train").rename(tree / "training")
        return str(tree / "train")
    if how == "one class":
        (tree / "train" / "bar").rename(tree / "bar")
        return "1 class folders"
    if how == "empty class":
        for path in (tree / "train" / "bar").iterdir():
            path.unlink()
        return str(tree / "train" / "bar")
    if how == "strange class":
        (tree / "test" / "bar").rename(tree / "test" / "zebra")
        return "zebra"
    if how == "empty test":
        for path in sorted((tree / "test").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        return "no class folders"
    broken = tree / "train" / "disc" / "002.png"
    broken.write_bytes(
        {"truncated": broken.read_bytes()[:300], "empty": b"", "text": b"not an image"}[how]
    )
    return str(broken)


@pytest.mark.parametrize(
    "how",
    [
        "missing", "file", "no test", "no train", "one class", "empty class", "strange class", "empty test",
        "truncated", "empty", "text",
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_one_line_that_names_it(tree, how):
    named = spoil(tree, how)
    with pytest.raises(UserError) as caught:
        load(dataset="folder", data_dir=str(tree))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_real_images(real_images):
    splits = load(dataset="folder", data_dir=str(real_images))
    assert (len(splits.train), len(splits.test), len(splits.train.classes)) == (50_000, 10_000, 10)
    np.testing.assert_allclose(splits.mean, (0.4913, 0.4821, 0.4465), atol=1e-3)
    np.testing.assert_allclose(splits.std, (0.2452, 0.2428, 0.2606), atol=1e-3)


# --- what else can be wrong with a tree ---


def test_links_are_followed_and_broken_ones_named(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (32, 32), "red").save(outside / "red.png")
    (tree / "train" / "bar" / "zz.png").symlink_to(outside / "red.png")
    (tree / "train" / "disc").rename(outside / "disc")
    (tree / "train" / "disc").symlink_to(outside / "disc")
    splits = load(dataset="folder", data_dir=str(tree))
    assert splits.train.labels.tolist() == [0] * 7 + [1] * 6
    assert splits.train.images[6, :, 0, 0].tolist() == [255, 0, 0]
    (outside / "red.png").unlink()
    with pytest.raises(UserError, match=r"zz\.png \(not a file, or a broken link\)"):
        load(dataset="folder", data_dir=str(tree))
    (tree / "train" / "bar" / "zz.png").unlink()
    (tree / "train" / "bar" / "zz.png").symlink_to("zz.png")
    with pytest.raises(UserError, match=r"zz\.png"):
        load(dataset="folder", data_dir=str(tree))


def test_names_that_differ_in_case_stay_apart(tmp_path):
    tree = draw_tree(tmp_path / "t", classes=("a", "A"))
    for name in ("B", "b"):
        Image.new("RGB", (32, 32), "red").save(tree / "train" / "a" / f"{name}.png")
    Image.new("RGB", (32, 32), "red").save(tree / "train" / "a" / "C.PNG")
    splits = load(dataset="folder", data_dir=str(tree))
    assert splits.train.classes == ("A", "a")
    assert splits.train.labels.bincount().tolist() == [6, 9]


def test_a_class_with_one_image(tree):
    for path in sorted((tree / "train" / "bar").iterdir())[1:]:
        path.unlink()
    splits = load(dataset="folder", data_dir=str(tree), val_fraction=0.4)
    assert splits.train.labels.bincount().tolist() == [1, 4]
    assert splits.val.labels.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", os.fsdecode(b"latin\xe9")])
def test_class_names_that_cannot_be_printed_are_refused_in_one_line(tree, name):
    try:
        for split in ("train", "test"):
            (tree / split / "disc").rename(tree / split / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(UserError, match="cannot be printed") as caught:
        load(dataset="folder", data_dir=str(tree))
    assert str(caught.value).isprintable()


def bad_image(path: Path, kind: str) -> None:
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a bomb":  # says of itself that it is 60,000 pixels wide and high
        Image.new("1", (32, 32)).save(path)
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", 60_000, 60_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
    elif kind == "two lines":
        bad_image(path.with_name("two\nlines.png"), "text")
    else:
        whole = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(whole).save(path)
        path.write_bytes(
            {"truncated": path.read_bytes()[:999], "empty": b"", "text": b"not an image"}[kind]
        )


BAD = ["a folder", "a pipe", "a bomb", "two lines", "truncated", "empty", "text"]


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_named_or_skipped(tree, kind):
    bad_image(tree / "train" / "bar" / "bad.png", kind)
    with pytest.raises(UserError, match="cannot read the image") as caught:
        load(dataset="folder", data_dir=str(tree))
    assert str(tree / "train" / "bar") in str(caught.value)
    assert str(caught.value).isprintable()
    for _ in range(2):  # decoded, and from the cache
        said = []
        splits = load(said, dataset="folder", data_dir=str(tree), skip_bad_images=True)
        assert splits.train.labels.tolist() == [0] * 6 + [1] * 6
        assert said == [f"skipped: {caught.value}"]
    with pytest.raises(UserError, match="cannot read the image"):  # nor does the cache hide it
        load(dataset="folder", data_dir=str(tree))


def test_an_image_that_can_be_read_again_is_used_again(tree):
    """Its size and its time of change may be what they were: a right that was lacking, a disk that was away."""
    path = tree / "train" / "bar" / "000.png"
    whole, times = path.read_bytes(), (1_700_000_000, 1_700_000_000)
    for content, expected in (
        (bytes(len(whole)), 5),
        (whole, 6),
        (bytes(len(whole)), 6),
    ):  # the last is cached
        path.write_bytes(content)
        os.utime(path, times)
        splits = load(dataset="folder", data_dir=str(tree), skip_bad_images=True)
        assert splits.train.labels.tolist() == [0] * expected + [1] * 6
    assert splits.train.images[0].float().std() > 0


def test_a_class_of_bad_images_only_is_an_error(tree):
    for path in (tree / "train" / "disc").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no image in .*disc can be read"):
        load(dataset="folder", data_dir=str(tree), skip_bad_images=True)


def test_a_cache_of_another_tree_is_not_used(tree, tmp_path):
    load(dataset="folder", data_dir=str(tree))
    other = draw_tree(tmp_path / "other", classes=("bar", "disc"), train=6, test=3)
    Image.new("RGB", (32, 32), "red").save(other / "train" / "bar" / "000.png")
    (other / CACHE_NAME).write_bytes((tree / CACHE_NAME).read_bytes())
    splits = load(dataset="folder", data_dir=str(other))
    assert splits.train.images[0, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_of_an_animation_the_first_picture_is_taken(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(read_image(path)[0][:, 5, 5].astype(int) - [255, 0, 0]).max() <= 2


def test_a_wrong_suffix_and_a_large_image_do_no_harm(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png", "BMP")
    assert read_image(tmp_path / "a.png")[0][0].min() == 255
    Image.new("L", (10_000, 10_000), 200).save(tmp_path / "b.png")  # Pillow warns of such
    assert read_image(tmp_path / "b.png")[0].min() == 200


def test_decoding_leaves_the_warning_filters_alone(tree):
    Image.new("1", (10_000, 9_000)).save(
        tree / "train" / "bar" / "large.png"
    )  # Pillow warns of such
    before = list(warnings.filters)
    load(dataset="folder", data_dir=str(tree))
    assert warnings.filters == before
