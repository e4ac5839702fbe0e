from pathlib import Path

import pytest
from support.folders import touch

from cifarnet.checkpoints import paths
from cifarnet.checkpoints.paths import WEIGHTS_FILE, resolve_model_path, split_names
from cifarnet.core.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working and home directory; results/ lies elsewhere and is empty."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return elsewhere


def refused(name: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve_model_path(name)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("long", ["long"]),
        ("long,hour,long", ["long", "hour", "long"]),
        ("a,b.safetensors", ["a,b.safetensors"]),
        ("c,a,b.safetensors,v1,2/last.pth,hour", ["c", "a,b.safetensors", "v1,2/last.pth", "hour"]),
        ("d,b.safetensors", ["d", "b.safetensors"]),
        ("~/c,~/a,b.safetensors", ["HOME/c", "HOME/a,b.safetensors"]),
        ("long,", ["long", ""]),
        ("a" * 5000 + ",c", ["a" * 5000, "c"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_names_are_separated_by_commas_and_paths_of_files_stay_whole(text, names, folder):
    touch(Path(), "v1,2/last.pth", "a,b.safetensors", "b.safetensors", "c")
    assert split_names(text) == [name.replace("HOME", str(folder)) for name in names]


def test_a_name_is_a_result_before_it_is_a_path(folder):
    assert "name a file that export.py wrote" in refused("hour")
    touch(Path(), *(f"{paths.RESULTS}/{name}/{WEIGHTS_FILE}" for name in ("hour", "long")))
    result = paths.RESULTS / "hour" / WEIGHTS_FILE
    assert resolve_model_path("hour") == result
    words = refused("huor")
    assert "did you mean hour?" in words
    assert "available by name: hour, long; else" in words
    touch(Path(), "mine", "hour")
    assert resolve_model_path("mine").resolve() == folder / "mine"
    assert resolve_model_path("hour") == result
    assert resolve_model_path("./hour").resolve() == folder / "hour"


@pytest.mark.parametrize("name", ["", ".", "nothing.safetensors", "a" * 5000, "two\nlines"])
def test_a_name_of_nothing_is_refused_in_one_line(name):
    refused(name)


def test_a_folder_for_the_hub_is_known_by_its_files():
    touch(Path(), "hub/config.json")
    assert "has no model.safetensors" in refused("hub")
    touch(Path(), "hub/model.safetensors")
    assert resolve_model_path("hub") == Path("hub/model.safetensors")


def test_a_snapshot_is_never_a_result():
    touch(Path(), f"{paths.RESULTS}/x.pth/{WEIGHTS_FILE}")
    assert "the snapshot x.pth cannot be read (No such file" in refused("x.pth")
    touch(Path(), "x.pth")
    assert resolve_model_path("x.pth") == Path("x.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_of_another_user_is_not_called_missing(monkeypatch, name):
    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    touch(Path(), name)
    monkeypatch.setattr(Path, "open", refuse)
    assert f"{name} cannot be read (Permission denied)" in refused(name)


@pytest.mark.parametrize("target", ["gone.safetensors", "x.safetensors"])
def test_a_broken_link_is_not_called_missing(target):
    Path("x.safetensors").symlink_to(target)
    assert "x.safetensors cannot be read (" in refused("x.safetensors")
