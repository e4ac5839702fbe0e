from pathlib import Path

import pytest
from PIL import Image

from cifarnet.images.finding import (
    NOT_IMAGES,
    find_images,
    image_suffixes,
    is_hidden,
    is_image,
    is_system,
    notes_on_ignored,
)


def test_ignored_files_are_counted_and_one_is_named():
    several = [Path("a\n.txt"), Path("b")]
    assert notes_on_ignored({NOT_IMAGES: several[:1], "here": several, "there": []}, several) == [
        "warning: ignored 1 file in no image format, such as a\\n.txt",
        "warning: ignored 2 files here, such as a\\n.txt",
        "ignored 2 system files and folders, such as a\\n.txt",
    ]


@pytest.mark.parametrize(
    "suffix",
    [".png", ".JPG", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".TIFF", ".ppm", ".tga"],
)
def test_every_suffix_that_pillow_reads_names_an_image(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (4, 4)).save(path)
    assert suffix.lower() in image_suffixes()
    assert is_image(path)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".pdf", ".h5", ".mpg", ".npz", ".svg", ""])
def test_other_files_are_not_images(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"BM is how a bitmap begins, too")
    assert not is_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", ["a", "a.txt", "photo.jpg_large"])
def test_content_counts_where_the_suffix_says_nothing(tmp_path, kind, name):
    Image.new("RGB", (4, 4)).save(tmp_path / name, kind)
    assert is_image(tmp_path / name)


def test_images_are_found_in_order_below_a_folder(tmp_path):
    for name in ("b.png", "a.JPG", "z.txt", ".c.png", ".d/e.png", "g/h/i.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "g")
    for name in ("@eaDir/a.png", "g/._b.jpg", "g/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    search = find_images(tmp_path)
    assert search.images == [tmp_path / name for name in ("a.JPG", "b.png", "g/h/i.gif")]
    assert search.not_images == [tmp_path / name for name in ("link", "z.txt")]
    assert search.system == [tmp_path / name for name in ("@eaDir", "g/._b.jpg", "g/Thumbs.db")]
    assert search.errors == []


def test_names_of_systems_are_told_from_others():
    system = ["$Recycle.Bin", "__macosx", "LOST+FOUND", "desktop.ini", ".DS_Store", ".Trash-1000"]
    system += ["@Recently-Snapshot", "~snapshot", "FOUND.000", "__pycache__"]
    assert all(is_system(name) and is_hidden(name) for name in system)
    others = ["eaDir", "lost", "recycle", "thumbs.png", "macosx", "__MACOSX2", "_.jpg"]
    assert not any(is_system(name) or is_hidden(name) for name in others)
    assert is_hidden(".git") and not is_system(".git")
