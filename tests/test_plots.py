import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from support.reports import make_report
from support.snapshots import make_row

import plots
from cifarnet.reporting.fonts import set_fonts

STRANGE = ("$x_{", "<b>&", "100%", "a" * 80, "_^\\")
NOT_MEASURED = dict.fromkeys(("val_loss", "val_accuracy", "test_loss", "test_accuracy"))


def history(epochs: int, held_out: str = "test"):
    rows = []
    for epoch in range(1, epochs + 1):
        held = {f"{held_out}_loss": 1.5 / epoch, f"{held_out}_accuracy": 1 - 1.2 / (epoch + 1)}
        rows.append(make_row(epoch, train_loss=2 / epoch, **NOT_MEASURED | held))
    return rows


def unmeasured(epochs: int):
    return [dataclasses.replace(row, **NOT_MEASURED) for row in history(epochs)]


def size_of(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 5  # something was drawn
        return image.size


@pytest.fixture
def figures(monkeypatch):
    """The figures that plots.py would write, drawn and kept instead."""
    kept = []

    def keep(figure, path):
        FigureCanvasAgg(set_fonts(figure)).draw()
        kept.append(figure)

    monkeypatch.setattr(plots, "_write", keep)
    return kept


@pytest.mark.parametrize("epochs", [1, 250])
@pytest.mark.parametrize("held_out", ["test", "val"])
def test_curves_and_schedule(tmp_path, epochs, held_out):
    path, steps = tmp_path / "figure.png", 98 * epochs
    plots.training_curves(history(epochs, held_out), "$x$ of <b>", path)
    assert size_of(path) == (960, 504)
    plots.learning_rate_schedule(lambda step: 1 - step / steps, steps, epochs, epochs // 2, path)
    assert size_of(path) == (960, 456)


def test_the_legend_names_what_was_measured_and_the_best_epoch(tmp_path, figures):
    path = tmp_path / "curves.png"
    plots.training_curves(history(3), "title", path, "train, smoothed labels", "train, mixed")
    looked_once = unmeasured(2) + history(3)[2:]
    plots.training_curves(looked_once, "title", path)
    plots.training_curves(unmeasured(3), "title", path)
    several, once, never = (
        [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
        for figure in figures
    )
    assert several == [["train, smoothed labels", "test"], ["train, mixed", "test"]]
    assert once == [["train", "test"]] * 2
    assert never == [["train"]] * 2
    for axes, what in zip(figures[0].axes, ("loss", "accuracy"), strict=True):
        for line, part in zip(axes.lines[:2], ("train", "test"), strict=True):
            values = [getattr(row, f"{part}_{what}") for row in history(3)]
            assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], values)
    titles = [figure.axes[1].get_title() for figure in figures]
    assert titles[0].startswith("accuracy (best test: ")
    assert titles[1].startswith("accuracy (test: ")  # a single one is not the best of several
    assert titles[2] == "accuracy"


def test_the_best_epoch_is_one_that_can_be_compared(tmp_path, figures):
    better = [dataclasses.replace(row, test_accuracy=0.9 / row.epoch) for row in history(4)]
    plots.training_curves(better, "title", tmp_path / "curves.png", comparable_after=2)
    assert figures[0].axes[1].get_title() == "accuracy (best test: 30.00%, epoch 3)"


def test_legends_are_off_the_data(tmp_path, figures):
    path = tmp_path / "picture.png"
    plots.training_curves(history(60), "run", path)
    plots.learning_rate_schedule(lambda step: 1 - step / 60, 60, 60, 30, path)
    plots.class_metrics(make_report("abc"), path)
    for figure in figures:
        panels = [axes.get_window_extent() for axes in figure.axes]
        legends = figure.legends or [axes.get_legend() for axes in figure.axes]
        for box in (legend.get_window_extent() for legend in legends):
            assert not any(box.overlaps(panel) for panel in panels)
            assert 0 <= box.x0 < box.x1 <= 960
            assert box.y0 >= 0


def cells_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_confusion_matrix_is_one_picture_of_shares_with_counts(tmp_path, figures):
    report = make_report("abc", images=10)
    report.confusion_matrix[:] = [[3, 1, 0], [0, 0, 4], [0, 0, 2]]
    plots.confusion_matrix(report, tmp_path / "confusion.png")
    assert len(figures[0].axes) == 2  # the matrix, and its colours
    assert cells_of(figures[0]) == ["75.0%", "3", "25.0%", "1", "100%", "4", "100%", "2"]
    shown = figures[0].axes[0].images[0].get_array()
    assert np.allclose(shown, [[0.75, 0.25, 0], [0, 0, 1], [0, 0, 1]])
    axes = figures[0].axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    sizes = [text.get_fontsize() for text in figures[0].axes[0].texts]
    assert all(count < share for share, count in zip(sizes[::2], sizes[1::2], strict=True))


def test_the_metrics_of_each_class_are_drawn_under_their_names(tmp_path, figures):
    report = make_report("abc", images=10)
    plots.class_metrics(report, tmp_path / "classes.png")
    drawn = {line.get_label(): list(line.get_xdata()) for line in figures[0].axes[0].lines}
    for key, label in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
        assert drawn[label] == [row[key] for row in report.per_class.values()]


@pytest.mark.parametrize("classes", [2, 20, 120])
def test_many_classes_stay_readable(tmp_path, figures, classes):
    """No two names beside an axis overlap, and none is smaller than 8 points."""
    report = make_report([f"class {i}" for i in range(classes)])
    plots.confusion_matrix(report, tmp_path / "confusion.png")
    plots.class_metrics(report, tmp_path / "classes.png")
    assert bool(cells_of(figures[0])) == (classes <= plots.MOST_SHARES)
    for figure in figures:
        labels = figure.axes[0].get_yticklabels()
        assert min(label.get_fontsize() for label in labels) >= 8
        edges = sorted((box.y0, box.y1) for box in (x.get_window_extent() for x in labels))
        assert all(top <= bottom + 1 for (_, top), (bottom, _) in itertools.pairwise(edges))
    shown = {label.get_text() for label in figures[1].axes[0].get_yticklabels()}
    lowest = sorted(report.per_class, key=lambda name: report.per_class[name]["f1"])[:100]
    assert shown == set(lowest)


@pytest.mark.parametrize("classes", [5, 21])
def test_strange_names_are_drawn_as_they_are(tmp_path, classes):
    names = [(STRANGE[i] if i < len(STRANGE) else f"class {i}") for i in range(classes)]
    report = make_report(names, dataset="$pictures_{")
    for draw in (plots.confusion_matrix, plots.class_metrics):
        draw(report, tmp_path / "picture.png")
        width, height = size_of(tmp_path / "picture.png")
        assert (width, 300 < height < 1000) == (960, True)
    plots.confusion_matrix(report, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert (np.asarray(image.convert("RGB")) == plots.confusion_pixels(report)).all()


def test_augmentations(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    versions = [images[::-1], 255 - images]
    names = [*"abcdefg", "a" * 40]
    plots.augmentations(images, versions * 4, names, "--augment light", tmp_path / "grid.png")
    assert min(size_of(tmp_path / "grid.png")) > 800
    tiles = plots.mosaic(images, versions)
    assert tiles.shape == (8 * 36, 3 * 36, 3)
    for row, column, image in ((0, 0, images[0]), (7, 1, images[0]), (3, 2, 255 - images[3])):
        tile = tiles[36 * row + 2 : 36 * row + 34, 36 * column + 2 : 36 * column + 34]
        assert (tile == image.transpose(1, 2, 0)).all()
