from pathlib import Path

from cifarnet.images.suffixes import NO_SUFFIX, ignored


def test_ignored_files_are_counted_and_one_is_named():
    assert ignored([Path("a\n.txt")], NO_SUFFIX) == (
        "warning: ignored 1 file without an image extension (.bmp, .jpeg, .jpg, .png, .webp), "
        "such as a\\n.txt"
    )
    assert ignored([Path("a"), Path("b")], "here") == "warning: ignored 2 files here, such as a"
