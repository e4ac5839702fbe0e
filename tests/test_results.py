"""What results/ holds stays usable; where the real images are, its figures are repeated."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_tree
from PIL import Image

from cifarnet.checkpoints import places
from cifarnet.checkpoints.weights import read_weights
from cifarnet.settings.parser import read_recipe
from model import load_pretrained, parameter_count

NAMES = sorted(path.parent.name for path in places.RESULTS.glob(f"*/{places.WEIGHTS_FILE}"))


@pytest.fixture
def result(request, trained, tmp_path, monkeypatch) -> str:
    """A committed result, by its name. Where there is none, a new one takes its place."""
    if request.param:
        return request.param
    (tmp_path / "fresh").mkdir()
    files = {places.WEIGHTS_FILE: trained.weights, "metrics.json": trained.metrics}
    for name, path in files.items():
        (tmp_path / "fresh" / name).write_bytes(path.read_bytes())
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    return "fresh"


def report_of(name: str) -> dict:
    return json.loads((places.RESULTS / name / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("result", NAMES or [None], indirect=True)
def test_the_weights_in_the_repository_load_and_predict(command, result):
    report, held = report_of(result), read_weights(result)
    assert held.classes == list(report["per_class"])
    said = (report["epoch"], report["dataset"], report["top1"])
    assert (held.epoch, held.dataset, held.accuracy) == said
    assert parameter_count(load_pretrained(result)[0]) == 174_762 - 3_850 + 385 * len(held.classes)
    draw_tree(Path("pictures"), size=(60, 40))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("pictures/black.png")
    done = command("predict", "--pretrained", result, "--json", "--top_k", "100", "pictures")
    assert (done.code, done.err) == (0, "")
    told = [json.loads(line)["predictions"] for line in done.out.splitlines()]
    assert len(told) == 19
    for predictions in told:
        assert sorted(guess["class"] for guess in predictions) == sorted(held.classes)
        assert sum(guess["probability"] for guess in predictions) == pytest.approx(1)
    highest = {predictions[0]["probability"] for predictions in told}
    assert len(highest) == 19  # predictions depend on the picture


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_of_the_recipe_beside_it(name):
    folder, recipes = places.RESULTS / name, places.RESULTS.parent / "recipes"
    recipe = read_recipe(folder / "recipe.toml")
    assert recipe == read_recipe(recipes / f"{name}.toml")  # the recipe that repeats it
    for flag in recipe.keys() & {"init", "teacher"}:
        # the earlier recipe is named after its --snapshot_dir
        earlier = Path(recipe[flag]).parent.name.removeprefix("snapshots_")
        assert read_recipe(folder / f"{flag}.toml") == read_recipe(recipes / f"{earlier}.toml")
    held = read_weights(name)
    assert recipe.items() <= held.config.items()
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, recipe["epochs"] + 1))
    assert held.epoch == recipe["epochs"]
    assert float(rows[-1]["test_accuracy"]) == held.accuracy


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_reported_accuracy_is_repeated(command, name, real_images):
    report, images = report_of(name), ("--dataset", "folder", "--data_dir", real_images)
    done = command("evaluate", "--pretrained", name, *images)
    assert (done.code, done.err) == (0, "")
    again = json.loads(Path("plots_complete/metrics.json").read_text(encoding="utf-8"))
    assert again["images"] == report["images"] == 10_000
    assert abs(again["top1"] - report["top1"]) * 10_000 < 2.5
