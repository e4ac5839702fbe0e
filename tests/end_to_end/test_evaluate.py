"""evaluate.py, as someone uses it on weights, snapshots and runs."""

import json
from pathlib import Path

import pytest
from support.outputs import figures
from support.pictures import draw_tree


@pytest.mark.parametrize("source", ["weights", "snapshot"])
def test_evaluate_repeats_the_accuracy_of_the_run(command, trained, source):
    of_the_run = json.loads(trained.metrics.read_text())
    path = getattr(trained, source)
    done = command("evaluate", "--pretrained", path, "--data_dir", trained.tree)
    assert (done.code, done.err) == (0, "")
    again = figures()
    differing = {name for name in again if again[name] != of_the_run[name]}
    assert differing <= {"last", "best", "snapshot", "run"}
    assert again["snapshot"] == str(path)
    text = Path("plots_complete/classification_report.txt").read_text()
    assert f"snapshot: {path} (epoch 4; last epoch" in text
    assert str(path) in done.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--pretrained", "WEIGHTS", "--snapshot", "SNAPSHOT"), "not allowed with"),
        ((), "name a model: --snapshot PATH, "),
        (("--pretrained", "WEIGHTS"), "trained on a folder of images, pictures, and does not"),
        (("--pretrained", "WEIGHTS", "--data_dir", "other"), "knows 3 (bar, disc, star); the data"),
        (("--pretrained", "WEIGHTS", "--evaluate", "ema"), "--evaluate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_request_is_one_line(command, trained, flags, words):
    draw_tree(Path("other"), classes=("bar", "tree"))
    paths = {"WEIGHTS": trained.weights, "SNAPSHOT": trained.snapshot}
    done = command("evaluate", *(paths.get(flag, flag) for flag in flags))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
