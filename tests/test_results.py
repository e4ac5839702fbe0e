"""What results/ holds stays usable; with the official images at hand its figures are repeated."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.outputs import figures
from support.pictures import draw_tree

from cifarnet.checkpoints.paths import RECIPES, RESULTS, WEIGHTS_FILE, split_names
from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.reporting.confidence import THRESHOLDS
from cifarnet.reporting.corruptions import read_corruptions
from cifarnet.settings import Settings
from cifarnet.settings.parser import read_recipe

NAMES = sorted(path.parent.name for path in RESULTS.glob(f"*/{WEIGHTS_FILE}"))

each_result = pytest.mark.parametrize("name", NAMES)


def report_of(name: str) -> dict:
    return figures(RESULTS / name)


@each_result
def test_the_weights_load_and_predict(command, name):
    report, trained = report_of(name), load_trained(name)
    assert list(trained.classes) == list(report["per_class"])
    origin = trained.origin
    assert (origin.epoch, trained.sha256) == (report["epoch"], report["sha256"])
    if origin.dataset == report["dataset"]:  # not of those trained on the JPEG re-encoding
        assert origin.accuracy == report["top1"]
    assert trained.parameters == report["parameters"]
    assert trained.parameters <= 174_762 or name == "residual"  # a teacher
    draw_tree(Path("pictures"), size=(60, 40))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("pictures/black.png")
    done = command("predict", "--pretrained", name, "--json", "--top_k", "100", "pictures")
    assert (done.code, done.err) == (0, "")
    answers = [json.loads(line)["predictions"] for line in done.out.splitlines()]
    assert len(answers) == 19
    for predictions in answers:
        assert sorted(guess["class"] for guess in predictions) == sorted(trained.classes)
        assert sum(guess["probability"] for guess in predictions) == pytest.approx(1)
    highest = {predictions[0]["probability"] for predictions in answers}
    assert len(highest) == 19  # predictions depend on the picture


@each_result
def test_a_result_is_of_the_recipe_beside_it(name):
    folder = RESULTS / name
    recipe = read_recipe(folder / "recipe.toml")
    assert recipe == read_recipe(RECIPES / f"{name}.toml")  # the recipe that repeats it
    for flag in recipe.keys() & {"init", "teacher"}:
        for needed in set(split_names(recipe[flag])) - {*NAMES}:
            # the earlier recipe is named after its --snapshot_dir
            earlier = Path(needed).parent.name.removeprefix("snapshots_")
            assert read_recipe(folder / f"{flag}.toml") == read_recipe(RECIPES / f"{earlier}.toml")
    origin = load_trained(name).origin
    flags = Settings.from_flags(**recipe).flags
    assert {name: origin.settings[name] for name in recipe} == {
        name: flags[name] for name in recipe
    }
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, recipe["epochs"] + 1))
    assert origin.epoch == recipe["epochs"]
    rounded = 5e-4 if name == "residual" else 0  # its weights were rounded to float16
    assert float(rows[-1]["test_accuracy"]) == pytest.approx(origin.accuracy, abs=rounded)


@each_result
def test_all_figures_of_a_result_are_of_one_evaluation(name):
    """What this version of evaluate.py writes, on the official test images."""
    folder, report = RESULTS / name, report_of(name)
    assert (report["dataset"], report["images"]) == ("CIFAR-10", 10_000)
    assert [row["threshold"] for row in report["thresholds"]] == list(THRESHOLDS)
    text = (folder / "classification_report.txt").read_text(encoding="utf-8")
    assert f"calibration error: {report['calibration_error']:.2%}" in text
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10_000
    assert sum(row["true"] == row["predicted"] for row in rows) == round(report["top1"] * 10_000)
    with (folder / "label_issues.csv").open(newline="") as file:
        for issue in csv.DictReader(file):
            row = rows[int(issue["image"])]
            assert (issue["label"], issue["part"]) == (row["true"], "test")
            assert issue["probability_label"] == row["probability_true"]
    table = read_corruptions(folder)
    measured = table and {"mean_accuracy": table.mean, "images": table.images}
    assert report["corruptions"] == measured
    if table:
        assert (table.images, round(table.clean, 6)) == (10_000, round(report["top1"], 6))


@pytest.mark.slow
@each_result
def test_the_reported_accuracy_is_repeated(command, name, cifar10_dir):
    done = command(
        "evaluate", "--pretrained", name, "--dataset", "cifar10", "--data_dir", cifar10_dir
    )
    assert (done.code, done.err) == (0, "")
    report, again = report_of(name), figures()
    assert again["images"] == report["images"] == 10_000
    assert report["dataset"] == "CIFAR-10"
    difference = again["top1"] - report["top1"]
    assert abs(difference) * 10_000 < 6.5  # another CPU, or float32, rounds otherwise
