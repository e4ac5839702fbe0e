"""Finding pictures, and the table; end_to_end/test_predict.py has the rest."""

import os
from pathlib import Path

import pytest

from cifarnet.core.errors import UserError
from commands.predicting import Table, find_pictures


@pytest.fixture
def album(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", ".hidden/c.png", "below/d.webp"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "album" / "link").symlink_to(tmp_path / "album")
    (tmp_path / "empty").mkdir()
    return Path("album")


def test_folders_are_searched_in_order_and_names_of_files_are_taken_as_they_are(album):
    (album / "@eaDir").mkdir()
    (album / "._a.JPG").touch()
    paths, problems, notes = find_pictures(["album/notes.txt", "album", "nowhere.png"])
    inside = ["album/a.JPG", "album/b.png", "album/below/d.webp"]
    assert paths == ["album/notes.txt", *inside, "nowhere.png"]
    assert problems == []
    assert notes == [
        "warning: ignored 2 files in no image format, such as album/link",
        "ignored 2 system files and folders, such as album/._a.JPG",
    ]


def test_folders_without_pictures_are_named(album):
    paths, [(name, problem)], notes = find_pictures(["empty"])
    assert (paths, name, notes) == ([], "empty", [])
    assert isinstance(problem, UserError)
    assert str(problem) == "the folder empty holds no images"


def test_folders_that_cannot_be_read_are_named(album, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    paths, [(name, problem)], _ = find_pictures(["album"])
    assert (paths, name) == ([], "album")
    assert str(problem) == "cannot read the folder album (Permission denied)"


def test_a_name_too_long_for_a_file_is_left_to_the_reader():
    assert find_pictures(["a" * 5000])[0] == ["a" * 5000]


def test_rows_are_aligned_and_names_are_printable():
    table = Table(["a.png", "long\nname.png"], ["cat", "giraffe"])
    first = table.row("a.png", [("giraffe", 0.875), ("cat", 0.125)]).splitlines()
    second = table.row("long\nname.png", [("cat", 1.0), ("giraffe", 0.0)])
    assert first == [
        "image           1.               2.",
        "a.png           giraffe  87.50%  cat      12.50%",
    ]
    assert second == r"long\nname.png  cat     100.00%  giraffe   0.00%"
