"""predict.py --explain, as a user starts it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.random_models import noise, random_model

from cifarnet.checkpoints.trained import write_weights


def coloured(path: Path) -> np.ndarray:
    """How far the colours of the file differ from grey, by column: float [W]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(float)
    return np.ptp(pixels, axis=2).max(axis=0)


def test_each_picture_has_a_file_and_none_replaces_another(predict, trained):
    first, second = sorted(trained.tree.glob("test/bar/*.png"))[:2]
    names = ("a/x.png", "b/x.png", "b/x_2.png", "a/" + "long" * 50 + ".png", "a/odd\n$x$.png")
    for name, source in zip(names, (first, second, first, second, first), strict=True):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(source, name)
    written = set()
    for _ in range(2):
        done = predict("--json", "--explain", "maps", "--csv", "p.csv", "a", "b")
        assert done.code == 0
        assert done.err.splitlines() == ["written to maps: 5 images", "written to p.csv: 5 rows"]
        targets = [Path(json.loads(line)["explained"]) for line in done.out.splitlines()]
        assert len(set(targets) - written) == len(names)
        written |= set(targets)
    assert written == set(Path("maps").iterdir())


def test_the_file_shows_the_picture_and_two_coloured_maps(predict):
    grey = noise(1, 40)[0, 0].numpy()
    Image.fromarray(grey).save("grey.png")
    done = predict("--explain", "maps", "grey.png")
    assert (done.code, done.err) == (0, "written to maps: 1 image\n")
    columns = coloured(Path("maps/grey.png"))
    thirds = [part.max() for part in np.array_split(columns, 3)]
    assert thirds[0] < 10 < 60 < min(thirds[1:])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--tta", "flip"), "average over networks or views"),
        (("--pretrained", "RESIDUAL.safetensors"), "residual takes the maximum"),
        (("--explain", "grey.png"), "--explain grey.png: cannot write there"),
    ],
)
def test_other_networks_and_folders_are_refused_in_one_line(
    predict, trained, tmp_path, flags, words
):
    write_weights(random_model(network="residual"), tmp_path / "RESIDUAL.safetensors")
    shutil.copy(next(trained.tree.glob("test/bar/*.png")), "grey.png")
    done = predict("grey.png", "--explain", "maps", *flags)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not Path("maps").exists()


def test_a_file_that_cannot_be_drawn_costs_no_answer(predict, trained, monkeypatch):
    """A full disk and a matplotlib that fails are alike: table, CSV file, then one line."""

    def fail(*arguments):
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("commands.explaining._figure", fail)
    images = sorted(trained.tree.glob("test/bar/*.png"))[:2]
    done = predict("--explain", "maps", "--csv", "table.csv", *images)
    assert (done.code, done.out.count("\n"), done.err.count("\n")) == (1, 3, 2)
    assert done.err.startswith("written to table.csv: 2 rows\n")
    assert f"--explain maps/{images[0].stem}.png: cannot write it (KeyError: " in done.err
    assert len(Path("table.csv").read_text().splitlines()) == 3
