import csv
from pathlib import Path

import pytest
import torch
from support.commands import QUICK, QUIET
from support.outputs import figures
from support.pictures import draw_tree
from support.random_models import random_model
from support.small_runs import small_splits
from support.snapshots import make_trained

from cifarnet.checkpoints.trained import write_weights
from cifarnet.core.device import init_process
from cifarnet.images.corruptions import CORRUPTIONS, corrupt
from cifarnet.inference.classifier import Classifier
from cifarnet.settings import Settings
from commands.corrupting import measure_corruptions

CSV = Path("plots_complete/corruptions.csv")


class Brightness(Classifier):
    """Class 1 above mid-grey."""

    def __init__(self) -> None:
        super().__init__([make_trained(classes=("a", "b"))])

    def logits(self, pixels):
        mean = pixels.double().mean((1, 2, 3))
        return torch.stack([127.5 - mean, mean - 127.5], dim=1)


def test_accuracies_are_those_of_each_image_in_its_place():
    images = small_splits(test=7).test
    settings = Settings.from_flags(device="cpu", batch_size=3, seed=5)
    runtime = init_process(settings.precision)
    rows = measure_corruptions(Brightness(), images, 0.25, settings, runtime)
    assert rows[0] == ("none", 0, 0.25, 7)
    cases = [(name, s) for name, entry in CORRUPTIONS.items() for s in entry.constants]
    assert [row[:2] for row in rows[1:]] == cases
    for name, severity, accuracy, count in rows[1:]:
        means = [
            corrupt(image, name, severity, 5, i).mean()
            for i, image in enumerate(images.images.numpy())
        ]
        hits = [(mean > 127.5) == label for mean, label in zip(means, images.labels, strict=True)]
        assert (count, accuracy) == (7, pytest.approx(sum(hits) / 7))
    other_batches = settings.replace(batch_size=7)
    assert measure_corruptions(Brightness(), images, 0.25, other_batches, runtime) == rows


@pytest.fixture
def tiny(tmp_path):
    """The flags of an evaluation of a small random network on nine images of 8 pixels."""
    tree = draw_tree(tmp_path / "tree", classes=("bar", "disc", "star"))
    model = random_model(width=0.1, classes=("bar", "disc", "star"), amp=False)
    write_weights(model, tmp_path / "w.safetensors")
    return ("--dataset", "folder", "--data_dir", tree, "--no-plot_evaluation", "--pretrained")


def page_has_the_table() -> bool:
    return "<h2>Corruptions</h2>" in Path("plots_complete/report.html").read_text()


def test_evaluate_writes_table_mean_and_page(command, tiny):
    ensemble = ("w.safetensors,w.safetensors", "--tta", "flip")
    done = command("evaluate", *tiny, *ensemble, "--corruptions")
    assert (done.code, done.err) == (0, "")
    rows = list(csv.DictReader(CSV.read_text().splitlines()))
    graded = [float(row["accuracy"]) for row in rows if 1 <= int(row["severity"]) <= 5]
    mean = sum(graded) / 75
    assert len(graded) == 75
    assert figures()["corruptions"] == {"mean_accuracy": pytest.approx(mean, abs=1e-6), "images": 9}
    assert float(rows[0]["accuracy"]) == pytest.approx(figures()["top1"], abs=1e-6)
    assert f"mean accuracy under corruption: {mean:.2%}\n" in done.out
    fog = ", ".join(f"{float(r['accuracy']):.2%}" for r in rows if r["corruption"] == "fog")
    assert f"\nfog: {fog}\n" in done.out
    assert page_has_the_table()


def test_the_table_stays_with_its_report(command, tiny):
    assert command("evaluate", *tiny, "w.safetensors", "--corruptions").code == 0
    before, mean = CSV.read_text(), figures()["corruptions"]
    assert command("evaluate", *tiny, "w.safetensors").code == 0  # the same network and images
    assert (CSV.read_text(), figures()["corruptions"]) == (before, mean)
    assert page_has_the_table()
    assert command("evaluate", *tiny, "w.safetensors", "--tta", "flip").code == 0
    (moved,) = Path("plots_complete").glob("*/corruptions.csv")
    assert (moved.read_text(), CSV.exists(), figures()["corruptions"]) == (before, False, None)
    assert not page_has_the_table()


def test_the_table_beside_the_weights_is_shown_with_their_report_only(command, tiny):
    """As in results/."""
    again = ("evaluate", *tiny, "w.safetensors")
    assert command(*again, "--corruptions", "--plot_dir", ".").code == 0
    table, mean = Path("corruptions.csv").read_text(), figures(Path())["corruptions"]
    done = command(*again)
    shown = f"mean accuracy under corruption: {mean['mean_accuracy']:.2%}, measured earlier\n"
    assert shown in done.out
    assert (CSV.read_text(), figures()["corruptions"], page_has_the_table()) == (table, mean, True)
    done = command(*again, "--tta", "flip", "--plot_dir", "other")
    assert (done.err, figures(Path("other"))["corruptions"]) == ("", None)
    Path("corruptions.csv").write_text("a,b\n")
    done = command(*again, "--plot_dir", "third")
    assert (done.code, done.err, figures(Path("third"))["corruptions"]) == (0, "", None)
    assert "warning: the report has no corruptions: corruptions.csv is not a file" in done.out


def test_a_continued_run_moves_the_table_of_its_former_report(command):
    once = (*QUICK, "--epochs", "1")
    assert command("main", *once, "--limit_test", "10").code == 0
    assert command("evaluate", "--run_dir", ".", "--corruptions", *QUIET).code == 0
    table = CSV.read_text()
    done = command("main", *once, "--limit_test", "10", "--epochs", "2", "--resume", "auto")
    assert (done.code, done.err) == (0, "")
    (moved,) = Path("plots_complete").glob("before_*")
    assert f"moved the former report, with its corruptions.csv, to {moved}" in done.out
    assert ((moved / "corruptions.csv").read_text(), CSV.exists()) == (table, False)
    assert figures(moved)["epoch"] == 1
    assert figures()["epoch"] == 2


@pytest.mark.parametrize(
    "content", ["", "a,b\n", "corruption,severity,accuracy,images\nfog,1,x,9\n"]
)
def test_a_damaged_table_is_named_in_one_line_and_costs_no_other_file(command, tiny, content):
    assert command("evaluate", *tiny, "w.safetensors", "--no-report").code == 0
    CSV.write_text(content)
    done = command("evaluate", *tiny, "w.safetensors", "--no-report")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "corruptions.csv is not a file that evaluate.py --corruptions wrote" in done.err
