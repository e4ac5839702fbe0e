from pathlib import Path

import pytest

from cifarnet.checkpoints.places import find_all_trained, split_names
from cifarnet.core.errors import UserError


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("v1,2").mkdir()
    for name in ("v1,2/last.pth", "a,b.safetensors", "b.safetensors", "c"):
        Path(name).touch()


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
def test_names_are_separated_by_commas_and_paths_of_files_stay_whole(text, names, tmp_path):
    assert split_names(text) == [name.replace("HOME", str(tmp_path)) for name in names]


def test_each_name_must_lead_to_a_file():
    assert find_all_trained("c,a,b.safetensors") == ["c", "a,b.safetensors"]
    for text, missing in (("c,nobody", "'nobody'"), ("c,", "''"), ("no.pth,c", "no.pth")):
        with pytest.raises(UserError, match=missing):
            find_all_trained(text)
