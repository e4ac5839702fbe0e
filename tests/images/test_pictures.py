import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.pictures import draw_tree, seen_by_others, write_twelve_bits

from cifarnet.core.errors import UserError
from cifarnet.images.pictures import read_image, read_images, to_pixels


def test_all_images_are_read_where_no_thread_can_start(tmp_path, monkeypatch):
    """As under a limit of processes. The paths come from a generator, as those of predict.py."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    paths = sorted(draw_tree(tmp_path).rglob("*.png"))
    expected = [read_image(path)[0] for path in paths]
    monkeypatch.setattr(threading.Thread, "start", refuse)
    outcomes = list(read_images(path for path in paths))
    assert np.array_equal([pixels for pixels, _ in outcomes], expected)


GREY = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64  # 0 to 65,472


HALF = np.repeat([[True, False]], 16, axis=1).repeat(32, axis=0)  # the left half of an image
SEEN = {  # by mode: an image, and what one sees
    "16-bit": (Image.fromarray(GREY), GREY / 257),
    "grey": (Image.fromarray((GREY // 256).astype(np.uint8)), GREY / 257),
    "palette": (Image.fromarray((GREY // 256).astype(np.uint8)).convert("P"), GREY / 257),
    "transparent": (Image.fromarray(np.where(HALF, 255, 0).astype(np.uint8)), HALF * 255),
    "cmyk": (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), [[[254]], [[0]], [[0]]]),
}


@pytest.mark.parametrize("mode", SEEN)
def test_images_of_every_mode_are_read_as_one_sees_them(tmp_path, mode):
    image, expected = SEEN[mode]
    if mode == "transparent":
        image = Image.merge("LA", [Image.new("L", (32, 32), 255), image])
    image.save(tmp_path / "image.png", "JPEG" if mode == "cmyk" else "PNG")
    pixels, size = read_image(tmp_path / "image.png")
    assert (size, pixels.dtype, pixels.shape) == ((32, 32), np.uint8, (3, 32, 32))
    assert pixels.flags.writeable
    assert np.abs(pixels - expected).max() <= 1


def test_grey_of_twelve_bits_is_scaled(tmp_path):
    write_twelve_bits(tmp_path / "white.tif")
    assert (read_image(tmp_path / "white.tif")[0] == 255).all()


def smooth(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("size", [(32, 32), (50, 20), (517, 300)], ids=str)
def test_pixels_are_those_of_opencv_and_torch(tmp_path, suffix, size):
    path = tmp_path / f"picture.{suffix}"
    smooth(*size).save(path, lossless=True)
    assert np.abs(read_image(path)[0] - seen_by_others(path)).max() <= 1
    assert read_image(path)[1] == size


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_opencvs(tmp_path, orientation, suffix):
    path = tmp_path / f"picture.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(40, 24).save(path, exif=exif)
    assert np.abs(read_image(path)[0] - seen_by_others(path)).max() <= 1


def png_chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(kind + data) ^ damage
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def jpeg_segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


MUCH = zlib.compress(b"a" * (2 << 20))
LONG = [(b"zTXt", b"k%d\0\0" % i + zlib.compress(b"a" * (900 << 10))) for i in range(80)]
BROKEN = {
    "much text": ("PNG", png_chunk(b"zTXt", b"k\0\0" + MUCH)),
    "much international text": ("PNG", png_chunk(b"iTXt", b"k\0\1\0\0\0" + MUCH)),
    "many texts": ("PNG", b"".join(png_chunk(*text) for text in LONG)),
    "a large profile": ("PNG", png_chunk(b"iCCP", b"k\0\0" + MUCH)),
    "an odd profile": ("PNG", png_chunk(b"iCCP", b"k\0\7junk")),
    "a wrong checksum": ("PNG", png_chunk(b"tEXt", b"k\0v", damage=1)),
    "a wrong checksum of Exif": ("PNG", png_chunk(b"eXIf", b"junk", damage=1)),
    "a short gamma": ("PNG", png_chunk(b"gAMA", b"")),
    "a broken animation": ("PNG", png_chunk(b"acTL", b"")),
    "junk for Exif": ("PNG", png_chunk(b"eXIf", b"junk")),
    "cut Exif": ("PNG", png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\7")),
    "no hexadecimal Exif": ("PNG", png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 2\nzz")),
    "a short profile": ("JPEG", jpeg_segment(0xE2, b"ICC_PROFILE\0\1")),
    "a short JFIF": ("JPEG", jpeg_segment(0xE0, b"JFIF\0\1")),
    "a short Adobe": ("JPEG", jpeg_segment(0xEE, b"Adobe\0")),
    "junk in Exif": ("JPEG", jpeg_segment(0xE1, b"Exif\0\0junk")),
    "Exif of a wrong type": (
        "JPEG",
        jpeg_segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1" + b"\1\x12\0\2\0\0\0\4abc\0\0\0\0\0"),
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("turned", [False, True])
def test_broken_metadata_stop_no_image(tmp_path, how, turned):
    kind, broken = BROKEN[how]
    whole, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    smooth(40, 24).save(whole, kind, exif=exif if turned and b"xif" not in broken.lower() else b"")
    content, after = whole.getvalue(), 33 if kind == "PNG" else 2  # IHDR; the start
    (tmp_path / "whole").write_bytes(content)
    (tmp_path / "broken").write_bytes(content[:after] + broken + content[after:])
    expected, _ = read_image(tmp_path / "whole")
    assert np.array_equal(read_image(tmp_path / "broken")[0], expected)


@settings(max_examples=150)
@given(st.binary(max_size=60), st.sampled_from(["PNG", "JPEG", "WEBP"]), st.booleans())
def test_no_exif_data_stop_an_image(tmp_path, junk, kind, headed):
    """Pixels stay those of the image, turned or not."""
    data = b"MM\0*\0\0\0\x08\0\2" + junk if headed else junk
    image = smooth(32, 32)
    image.save(tmp_path / "junk", kind, exif=data, quality=95)
    pixels, _ = read_image(tmp_path / "junk")
    assert sorted(pixels.mean((1, 2)).round()) == pytest.approx(
        sorted(np.asarray(image).mean((0, 1)).round()), abs=2
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_broken_pixels_stop_an_image_whatever_its_metadata(tmp_path, kind):
    path = tmp_path / "image"
    smooth(64, 64).save(path, kind)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"(?i)truncated"):
        read_image(path)


def test_adobes_colours_survive_a_broken_profile(tmp_path):
    """Without its Adobe segment, which says that colours are inverted, it would be another."""
    path = tmp_path / "image.jpg"
    smooth(32, 32).convert("CMYK").save(path, "JPEG")
    expected, _ = read_image(path)
    content = path.read_bytes()
    path.write_bytes(content[:2] + jpeg_segment(0xE2, b"ICC_PROFILE\0\1") + content[2:])
    assert np.array_equal(read_image(path)[0], expected)


@pytest.mark.parametrize("size", [48, 128])
def test_images_are_read_at_the_size_asked_for(tmp_path, size):
    smooth(70, 50).save(tmp_path / "a.png")
    pixels, original = read_image(tmp_path / "a.png", size)
    assert pixels.shape == (3, size, size)
    assert original == (70, 50)


@pytest.mark.parametrize("suffix", ["gif", "tif", "ppm", "tga", "jfif"])
def test_other_formats_are_read_too(tmp_path, suffix):
    path = tmp_path / f"PICTURE.{suffix.upper()}"
    image = smooth(32, 32)
    image.save(path)
    with Image.open(path) as saved:
        expected = np.asarray(saved.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_image(path)[0], expected)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(read_image(path)[0][:, 5, 5].astype(int) - [255, 0, 0]).max() <= 2


def test_a_wrong_extension_and_a_large_image_do_no_harm(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png", "BMP")
    assert read_image(tmp_path / "a.png")[0][0].min() == 255
    Image.new("L", (10_000, 10_000), 200).save(tmp_path / "b.png")  # Pillow warns of this size
    assert read_image(tmp_path / "b.png")[0].min() == 200


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_an_agreed_range_are_refused(tmp_path, kind):
    Image.fromarray(np.full((32, 32), 200, kind)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match="its pixels have no agreed range"):
        read_image(tmp_path / "image.tif")


@pytest.mark.parametrize("value", [70_000, -1])
def test_pixels_beyond_16_bits_are_refused(value):
    with pytest.raises(UserError, match="more than 16 bits"):
        to_pixels(Image.fromarray(np.full((32, 32), value, np.int32)))


def test_the_transparent_colour_of_16_bit_grey_is_black(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "image.png", transparency=int(GREY[20, 5]))
    pixels, _ = read_image(tmp_path / "image.png")
    assert pixels[:, 20, 5].max() == 0 < pixels[:, 20, 4].min()


def test_an_error_without_a_message_is_named(tmp_path, monkeypatch):
    Image.new("L", (32, 32)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "open", lambda path: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(UserError, match=r"image\.png \(MemoryError\); repair or remove it"):
        read_image(tmp_path / "image.png")


def test_many_images_come_in_order_with_the_errors_among_them(tmp_path):
    paths = sorted(draw_tree(tmp_path / "tree", train=20, test=0).rglob("*.png"))
    paths[7].write_bytes(b"not an image")
    outcomes = list(read_images(paths))
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, UserError)] == [7]
    assert str(paths[7]) in str(outcomes.pop(7))
    for (pixels, _), path in zip(outcomes, [*paths[:7], *paths[8:]], strict=True):
        assert np.array_equal(pixels, read_image(path)[0])


def test_reading_leaves_the_warning_filters_alone(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 9_000)).save(path)  # Pillow warns of this size
    before = list(warnings.filters)
    assert len(list(read_images([path] * 3))) == 3
    assert warnings.filters == before
