import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from states import make_row

import plots
from cifarnet.reporting.metrics import build_report
from cifarnet.training.schedule import learning_rate

STRANGE = ("$x_{", "<b>&", "100%", "a" * 80, "_^\\")
NOT_MEASURED = dict.fromkeys(("val_loss", "val_accuracy", "test_loss", "test_accuracy"))


def history(epochs: int, held_out: str = "test"):
    rows = []
    for epoch in range(1, epochs + 1):
        loss, accuracy = 1.5 / epoch, 1 - 1.2 / (epoch + 1)
        row = make_row(epoch, train_loss=2 / epoch, train_accuracy=1 - 1 / (epoch + 1))
        held = {f"{held_out}_loss": loss, f"{held_out}_accuracy": accuracy}
        rows.append(dataclasses.replace(row, **NOT_MEASURED | held))
    return rows


def unmeasured(rows):
    return [dataclasses.replace(row, **NOT_MEASURED) for row in rows]


def size_of(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 5  # something was drawn
        return image.size


@pytest.fixture
def figures(monkeypatch):
    """The figures that plots.py would write, kept instead."""
    kept = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: kept.append(figure))
    return kept


@pytest.mark.parametrize("epochs", [1, 2, 250])
@pytest.mark.parametrize("held_out", ["test", "val"])
def test_curves(tmp_path, epochs, held_out):
    plots.training_curves(history(epochs, held_out), "$x$ of <b>", tmp_path / "curves.png")
    assert size_of(tmp_path / "curves.png") == (1320, 504)


def test_curves_show_and_name_only_what_was_measured(tmp_path):
    rows = history(5)
    red = np.array([int(plots.RED[i : i + 2], 16) for i in (1, 3, 5)])
    for measured in (True, False):
        if not measured:
            rows = unmeasured(rows)
        plots.training_curves(rows, "title", tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as image:
            drawn = (np.asarray(image.convert("RGB")) == red).all(axis=2)
        assert drawn.any() == measured


def test_the_legend_names_the_training_loss_and_the_best_epoch(tmp_path, figures):
    path = tmp_path / "curves.png"
    plots.training_curves(history(3), "title", path, "train, smoothed labels", "train, mixed")
    looked_once = unmeasured(history(2)) + history(3)[2:]
    plots.training_curves(looked_once, "title", path)
    several, once = (
        [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
        for figure in figures
    )
    assert [names[0] for names in several] == ["train, smoothed labels", "train, mixed"]
    assert several[1][-1].startswith("best test: ")
    assert once[1][-1].startswith("test: ")  # a single one is not the best of several


@pytest.mark.parametrize(("epochs", "done"), [(1, 1), (250, 100), (3, 0)])
def test_schedule(tmp_path, epochs, done):
    steps = epochs * 98
    path = tmp_path / "rate.png"

    def rate(step):
        return learning_rate(step, steps, 0, 0.1, 1e-6, "cosine")

    plots.learning_rate_schedule(rate, steps, epochs, done, path)
    assert size_of(path) == (960, 504)


def test_the_schedules_title_names_its_peak(tmp_path, figures):
    plots.learning_rate_schedule(lambda step: (0.1, 0.4, 0.2)[step], 3, 3, 3, tmp_path / "rate.png")
    titles = [figure.axes[0].get_title() for figure in figures]
    assert titles == ["learning rate (--lr), 0.4 to 0.2"]


@pytest.mark.parametrize("classes", [2, 5, 10, 20, 21, 150])
def test_report_figures(tmp_path, classes):
    names = tuple((STRANGE[i] if i < len(STRANGE) else f"class {i}") for i in range(classes))
    logits, labels = torch.randn(400, classes), torch.randint(0, classes, (400,))
    about = {"snapshot": "a.pth", "epoch": 1, "weights": "raw"}
    about |= {"selected_by": "by chance", "sha256": "0"}
    report = build_report(logits, labels, names, dataset="$pictures_{", **about)
    plots.confusion_matrix(report, tmp_path / "confusion.png")
    plots.class_metrics(report, tmp_path / "classes.png")
    for name in ("confusion.png", "classes.png"):
        width, height = size_of(tmp_path / name)
        assert 500 < width < 5000
        assert 400 < height < 2500


def test_augmentations(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    plots.augmentations(images, [images] * 8, tmp_path / "grid.png")
    assert min(size_of(tmp_path / "grid.png")) > 800


def test_a_figure_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        plots.training_curves(history(3), "title", tmp_path / "missing" / "curves.png")
    assert not list(tmp_path.iterdir())
