"""evaluate.py, as someone uses it on weights, snapshots and runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import QUIET
from support.outputs import figures
from support.pages import data_of
from support.pictures import draw_tree

from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.checkpoints.trained import write_weights


@pytest.mark.parametrize("source", ["weights", "snapshot"])
def test_evaluate_repeats_the_accuracy_of_the_run(command, trained, source):
    of_the_run = json.loads(trained.metrics.read_text())
    path = getattr(trained, source)
    done = command("evaluate", "--pretrained", path, "--data_dir", trained.tree)
    assert (done.code, done.err) == (0, "")
    again = figures()
    differing = {name for name in again if again[name] != of_the_run[name]}
    assert differing <= {"last", "best", "snapshot", "run", "thresholds"}  # of other pictures too
    assert again["snapshot"] == str(path)
    files = {path.name for path in Path("plots_complete").iterdir()}
    assert files == {
        *("metrics.json", "classification_report.txt", "predictions.csv", "report.html"),
        *("predictions.npz", "label_issues.csv"),
        *("confusion_matrix.png", "class_metrics.png"),
    }
    text = Path("plots_complete/classification_report.txt").read_text()
    assert f"snapshot: {path} (epoch 4; last epoch" in text
    assert str(path) in done.out


@pytest.mark.parametrize("layout", ["test", "test_fraction", "labels"])
def test_test_images_of_some_classes_are_enough(command, trained, tmp_path, layout):
    """Without training images, and of two classes of three."""
    tree, flags = tmp_path / "tree", ()
    shutil.copytree(trained.tree / "test", tree / ("test" if layout == "test" else ""))
    shutil.rmtree(next(tree.rglob("disc")))
    if layout == "test_fraction":
        flags = ("--test_fraction", "1")
    if layout == "labels":
        (tree / "test").mkdir()
        names = [
            path.rename(tree / "test" / f"{path.parent.name}{path.name}").name
            for path in sorted(tree.rglob("*.png"))
        ]
        (tree / "labels.csv").write_text("".join(f"test/{name},{name[:-7]}\n" for name in names))
        flags = ("--labels", tree / "labels.csv")
    flags += ("--plot_dir", "p", *(() if layout == "test" else QUIET))
    done = command("evaluate", "--snapshot", trained.snapshot, "--data_dir", tree, *flags)
    assert (done.code, done.err) == (0, "")
    assert f"the test images of {tree} lack disc" in done.out
    metrics = json.loads(Path("p/metrics.json").read_text())
    assert {name: row["support"] for name, row in metrics["per_class"].items()} == {
        "bar": 3,
        "disc": 0,
        "star": 3,
    }
    assert metrics["images"] == 6
    assert metrics["top1"] == 1.0


def test_the_history_beside_the_weights_is_in_the_report(command, trained):
    """As in results/; another history is left out."""
    (history,) = trained.snapshot.parents[1].glob("log/*.csv")
    Path("result").mkdir()
    weights = shutil.copy(trained.weights, "result/weights.safetensors")
    shutil.copy(history, "result/history.csv")
    evaluate = ("evaluate", "--pretrained", weights, "--data_dir", trained.tree)
    page = Path("plots_complete/report.html")
    assert command(*evaluate, "--no-plot_evaluation").code == 0
    assert "epoch 4 " in str(data_of(page.read_text())["epochs"])
    assert "result/history.csv" in page.read_text()
    lines = history.read_text().splitlines(keepends=True)
    for content, warning in (("".join(lines[:-1]), ""), ("nonsense", "warning: the report has no")):
        Path("result/history.csv").write_text(content)
        done = command(*evaluate, "--no-plot_evaluation")
        assert (done.code, warning in done.out) == (0, True)
        assert "result/history.csv" not in page.read_text()


def test_evaluate_looks_for_other_images_where_they_are(command, trained):
    before = sorted(trained.tree.iterdir())
    other = ("--dataset", "cifar10", "--data_url", "file:///nowhere")
    done = command("evaluate", "--snapshot", trained.snapshot, *other)
    assert (done.code, "cannot get CIFAR-10 into data (" in done.err) == (2, True)
    assert sorted(trained.tree.iterdir()) == before
    # more test images than the 40 that the run was limited to
    more = draw_tree(Path("more"), classes=("bar", "disc", "star"), test=20)
    flags = ("--data_dir", more, "--dataset_name", "renamed", *QUIET)
    assert command("evaluate", "--snapshot", trained.snapshot, *flags).code == 0
    assert figures()["images"] == 60
    assert figures()["selected_by"].endswith("during the run; trained on pictures")
    # a snapshot says where its images are
    assert command("evaluate", "--pretrained", trained.snapshot, *QUIET).code == 0
    assert figures()["images"] == 9


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--pretrained", "WEIGHTS", "--snapshot", "SNAPSHOT"), "not allowed with"),
        ((), "name a model: --snapshot PATH, "),
        (("--run_dir", "none"), "cannot be read (No such file or directory)"),
        (("--snapshot", "SNAPSHOT", "--evaluate", "ema"), "--ema_decay"),
        (("--pretrained", "WEIGHTS"), "trained on a folder of images, pictures, and does not"),
        (
            ("--pretrained", "WEIGHTS", "--data_dir", "other"),
            "'tree', which the network lacks: it knows 3 (bar, disc, star)",
        ),
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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--pretrained", "trained", "--calibrate"), "was trained on all 18 training images"),
        (("--pretrained", "trained,trained", "--calibrate"), "takes one network"),
        (("--pretrained", "trained", "--calibrate", "1.5"), "is not a share in (0, 1)"),
        (("--pretrained", "trained", "--calibrate", "nan"), "is not a share in (0, 1)"),
        (("--pretrained", "trained", "--calibrate", "nowhere"), "nowhere does not exist"),
        (("--pretrained", "trained", "--calibrate", "0.001"), "holds out no image"),
        (
            ("--pretrained", "trained", "--calibrate", "0.5", "--dataset", "digits"),
            "class names differ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_calibrated_is_one_line(command, trained, flags, words):
    before = trained.weights.read_bytes()
    places = ("--dataset", "folder", "--data_dir", trained.tree)
    flags = [
        flag.replace("trained", str(trained.weights)) if flag[0] == "t" else flag for flag in flags
    ]
    done = command("evaluate", *places, *flags, *QUIET)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert words in done.err
    assert trained.weights.read_bytes() == before


def test_validation_images_of_another_data_set_are_not_known(command, trained):
    other = replace(load_trained(str(trained.weights)), mean=(0.1, 0.2, 0.3))
    write_weights(other, Path("other.safetensors"))
    images = ("--dataset", "folder", "--data_dir", trained.tree)
    done = command("evaluate", "--pretrained", "other.safetensors", *images, "--calibrate")
    assert (done.code, "is not what other.safetensors was trained on" in done.err) == (2, True)
