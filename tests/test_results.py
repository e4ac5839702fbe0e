"""What results/ holds stays usable; where the real images are, its figures are repeated."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_tree
from PIL import Image

from cifarnet.checkpoints import weights
from cifarnet.core.commandline import read_recipe
from model import load_pretrained, parameter_count

NAMES = sorted(path.parent.name for path in weights.RESULTS.glob(f"*/{weights.FILE}"))


@pytest.fixture
def result(request, trained, tmp_path, monkeypatch) -> str:
    """A committed result, by its name; without one, a freshly made one stands in."""
    if request.param is None:
        (tmp_path / "fresh").mkdir()
        for name, path in ((weights.FILE, trained.weights), ("metrics.json", trained.metrics)):
            (tmp_path / "fresh" / name).write_bytes(path.read_bytes())
        monkeypatch.setattr(weights, "RESULTS", tmp_path)
    return request.param or "fresh"


@pytest.mark.parametrize("result", NAMES or [None], indirect=True)
def test_the_weights_in_the_repository_load_and_predict(command, result):
    folder = weights.RESULTS / result
    report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    held = weights.read_weights(result)
    assert held.classes == list(report["per_class"])
    assert (held.epoch, held.dataset, held.accuracy) == (
        report["epoch"],
        report["dataset"],
        report["top1"],
    )
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
    assert (
        len({predictions[0]["probability"] for predictions in told}) == 19
    )  # it looks at the pictures


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_of_the_recipe_beside_it(name):
    folder, recipes = weights.RESULTS / name, weights.RESULTS.parent / "recipes"
    recipe = read_recipe(folder / "recipe.toml")
    assert recipe == read_recipe(recipes / f"{name}.toml")  # what repeats it
    for earlier in recipe.keys() & {"init", "teacher"}:
        its = Path(recipe[earlier]).parent.name.removeprefix(
            "snapshots_"
        )  # as that recipe names its --snapshot_dir
        assert read_recipe(folder / f"{earlier}.toml") == read_recipe(recipes / f"{its}.toml")
    held = weights.read_weights(name)
    assert recipe.items() <= held.config.items()
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, recipe["epochs"] + 1))
    assert held.epoch == recipe["epochs"]
    assert float(rows[-1]["test_accuracy"]) == held.accuracy


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_reported_accuracy_is_repeated(command, name, real_images):
    report = json.loads((weights.RESULTS / name / "metrics.json").read_text(encoding="utf-8"))
    done = command(
        "evaluate", "--pretrained", name, "--dataset", "folder", "--data_dir", real_images
    )
    assert (done.code, done.err) == (0, "")
    again = json.loads(Path("plots_complete/metrics.json").read_text(encoding="utf-8"))
    assert again["images"] == report["images"] == 10_000
    assert abs(again["top1"] - report["top1"]) * 10_000 < 2.5
