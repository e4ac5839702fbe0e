"""Figures, as PNG files, from a history or a report. All are 8 inches wide and have one style."""

import gc
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifarnet.checkpoints.history import Row, best_row
from cifarnet.core.errors import printable
from cifarnet.core.files import write_atomically
from cifarnet.core.log import print_line
from cifarnet.reporting.fonts import FONT, drawable, set_fonts
from cifarnet.reporting.metrics import Report

WIDTH, DPI = 8, 120  # inches, pixels per inch: readable where it is shown 800 pixels wide
BLUE, RED, GREEN = "#1f6fb4", "#d1495b", "#3f9c6b"
STYLE = {
    **{"text.parse_math": False, "font.family": FONT, "font.size": 10},  # `$` begins no formula
    **{"figure.titlesize": 12, "axes.titlesize": 11, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True},
}
GAP = 2  # pixels around each image of a mosaic
MOST_NUMBERED = 12  # classes, for shares and counts in the cells of a confusion matrix
MOST_SHARES = 20  # classes, for shares without counts
MOST_NAMES = 30  # beside an axis of a confusion matrix
MOST_ROWS = 100  # classes, in the figure of the metrics per class


def _figure(height: float, title: str, about: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle("\n".join([title, *([_shortened(drawable(about), 90)] if about else [])]))
    return figure


def _write(figure: Figure, path: Path) -> None:
    set_fonts(figure)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
    gc.collect()  # figures refer to themselves: without this their memory would pile up


def _epoch_axis(axes: Axes, epochs: int) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(0, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend_below(axes: Axes, columns: int) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


@mpl.rc_context(STYLE)
def training_curves(
    history: Sequence[Row],
    title: str,
    path: Path,
    train_loss: str = "train",
    train_accuracy: str = "train",
    comparable_after: int = 0,
) -> None:
    """Loss and accuracy over the epochs, in training and on held-out images; marks the best epoch
    after `comparable_after`.

    `title` names the run. `train_loss` and `train_accuracy` are names for the legends: training
    may measure another loss and accuracy than evaluation. Raises `OSError`.
    """
    held_out = [row for row in history if row.held_out_accuracy is not None]
    # A resumed run may hold out other images than before: the last ones measured count.
    validates = held_out and held_out[-1].val_loss is not None
    part, name = ("val", "validation") if validates else ("test", "test")
    measured = [row for row in held_out if getattr(row, f"{part}_loss") is not None]
    figure = _figure(4.2, "Loss and accuracy after each epoch", title)
    legends = ("loss", train_loss), ("accuracy", train_accuracy)
    for axes, (what, train) in zip(figure.subplots(1, 2), legends, strict=True):
        trained = [row for row in history if row.epoch]  # epoch 0 is only evaluated
        lines = (trained, "train", BLUE, train), (measured, part, RED, name)
        for rows, part_name, color, label in lines:
            if rows:
                style = {"marker": "o" if len(rows) < 30 else "", "ms": 3}
                values = [getattr(row, f"{part_name}_{what}") for row in rows]
                axes.plot([row.epoch for row in rows], values, color=color, label=label, **style)
        axes.set_title(what)
        _epoch_axis(axes, history[-1].epoch)
        if what == "accuracy":
            _mark_best(axes, measured, name, comparable_after)
        _legend_below(axes, columns=2)
    _write(figure, path)


def _mark_best(axes: Axes, measured: Sequence[Row], name: str, comparable_after: int) -> None:
    """Marks the best row after the epoch `comparable_after`, names it in the title, and writes the
    ticks in percent."""
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    best = best_row([row for row in measured if row.epoch > comparable_after])
    if best:
        accuracy = best.held_out_accuracy
        which = f"best {name}" if len(measured) > 1 else name  # a single one is not chosen
        axes.set_title(f"accuracy ({which}: {accuracy:.2%}, epoch {best.epoch})")
        axes.plot(best.epoch, accuracy, "*", ms=13, color=RED, clip_on=False)


@mpl.rc_context(STYLE)
def learning_rate_schedule(
    rate: Callable[[int], float], steps: int, epochs: int, done: int, path: Path
) -> None:
    """The learning rate over a run of `epochs` epochs and `steps` steps; the first `done` epochs
    are filled. Raises `OSError`."""
    shown = np.unique(np.linspace(0, steps - 1, 2000).astype(int))
    rates = np.array([rate(int(step)) for step in shown])
    at = shown * epochs / steps
    about = f"highest {rates.max():.3g}, last {rates[-1]:.3g}"
    figure = _figure(3.8, "Learning rate schedule", about)
    axes = figure.subplots()
    axes.plot(at, rates, color=BLUE, label="learning rate")
    label = f"done: {done} of {epochs} epochs"
    axes.fill_between(at, rates, where=at <= done, color=BLUE, alpha=0.15, lw=0, label=label)
    _epoch_axis(axes, epochs)
    axes.set_xlim(0, epochs)
    axes.set_ylim(0, rates.max() * 1.05)
    _legend_below(axes, columns=2)
    _write(figure, path)


@mpl.rc_context(STYLE)
def confusion_matrix(report: Report, path: Path) -> None:
    """Draws the confusion matrix. A cell shows its share of the true class, and below it the count.
    Above 12 classes the counts are left out, above 20 the shares too. Raises `OSError`."""
    _write(_confusion_figure(report), path)
    if any(drawable(name) != printable(name) for name in report.per_class):
        print_line(
            "warning: no installed font has some letters of these names, so the figures show their "
            "numbers (\\uXXXX); install a font that has them, such as Noto"
        )


@mpl.rc_context(STYLE)
def confusion_pixels(report: Report) -> np.ndarray:
    """The figure that `confusion_matrix` writes, as uint8 [H,W,3]."""
    canvas = FigureCanvasAgg(set_fonts(_confusion_figure(report)))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _confusion_figure(report: Report) -> Figure:
    names = [drawable(name) for name in report.per_class]
    counts = np.array(report.confusion_matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure(min(6.9, 3 + 0.4 * len(names)), "Confusion matrix", _about(report))
    figure.set_layout_engine("compressed")  # no empty space beside the square
    axes = figure.subplots()
    # The square root shows rare mistakes too.
    shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_label("share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    axes.grid(False)
    every = math.ceil(len(names) / MOST_NAMES)
    ticks = range(0, len(names), every)
    labels = [_shortened(name, 18) for name in names[::every]]
    short = max(map(len, labels)) <= 3
    tilt = {} if short else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, labels, **tilt)
    axes.set_yticks(ticks, labels)
    if len(names) <= MOST_SHARES:
        _write_in_cells(axes, shares, counts)
    return figure


def _write_in_cells(axes: Axes, shares: np.ndarray, counts: np.ndarray) -> None:
    """Writes the share in percent into each cell that is not empty, and the count if both fit."""
    size = 9.5 if len(shares) <= 10 else 8
    both = len(shares) <= MOST_NUMBERED
    for (row, column), share in np.ndenumerate(shares):
        if not share:
            continue
        style = {"ha": "center", "va": "center", "color": "w" if share > 0.3 else "k"}
        style |= {"xy": (column, row), "textcoords": "offset points"}
        percent = f"{share:.1%}" if both else f"{100 * share:.0f}"
        percent = "100%" if share == 1 and both else percent  # one more digit would not fit
        axes.annotate(percent, xytext=(0, 4 if both else 0), fontsize=size, **style)
        if both:
            count = str(counts[row, column])
            axes.annotate(count, xytext=(0, -8), fontsize=size - 2.5, alpha=0.8, **style)


def _about(report: Report) -> str:
    """Data set, number of images and top-1 of a report, in words."""
    name = _shortened(report.dataset, 50)
    return f"{name}: {report.images:,} test images, top-1 {report.top1:.2%}"


def _shortened(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


@mpl.rc_context(STYLE)
def class_metrics(report: Report, path: Path) -> None:
    """Precision, recall and F1 of each class, a row each; of more than 100 classes, those with the
    lowest F1. Raises `OSError`."""
    each = list(report.per_class.items())
    title = "Precision, recall and F1 of each class"
    if len(each) > MOST_ROWS:
        each = sorted(each, key=lambda item: item[1]["f1"])[:MOST_ROWS]
        title = f"The {MOST_ROWS} of {len(report.per_class)} classes with the lowest F1"
    height = 0.29 if len(each) <= 20 else 0.19
    figure = _figure(1.9 + height * len(each), title, _about(report))
    axes = figure.subplots()
    at = np.arange(len(each))
    values = {key: np.array([row[key] for _, row in each]) for key in ("precision", "recall", "f1")}
    axes.hlines(at, values["precision"], values["recall"], color="0.75", lw=2, zorder=1)
    styles = ("precision", BLUE, "o"), ("recall", GREEN, "s"), ("F1", RED, "D")
    for label, color, marker in styles:
        axes.plot(values[label.lower()], at, marker, color=color, label=label, ms=5, clip_on=False)
    mean = report.macro["f1"]
    axes.axvline(mean, color="k", lw=1, ls="--", label=f"macro F1 {mean:.4f}", zorder=0)
    lowest = min(column.min() for column in values.values())
    axes.set_xlim(np.floor(lowest * 20 - 0.2) / 20 if lowest > 0.05 else 0, 1)
    axes.set_ylim(len(each) - 0.4, -0.6)
    small = {"fontsize": 10 if len(each) <= 20 else 8}
    axes.set_yticks(at, [_shortened(drawable(name), 24) for name, _ in each], **small)
    right = axes.secondary_yaxis("right")
    right.set_yticks(at, [f"{value:.3f}" for value in values["f1"]], color=RED, **small)
    for side in (axes, right):
        side.tick_params(axis="y", length=0, pad=9)  # markers at 0 and 1 reach over the edge
    right.spines[:].set_visible(False)
    figure.legend(ncols=4, loc="outside lower center")
    _write(figure, path)


def mosaic(originals: np.ndarray, versions: Sequence[np.ndarray]) -> np.ndarray:
    """`originals` uint8 [N,3,H,W], a row each, with their `versions` beside them and white lines
    between: uint8 [H',W',3]."""
    tiles = np.stack([originals, *versions], axis=1)  # [N,K,3,H,W]
    edge = [(0, 0)] * 3 + [(GAP, GAP)] * 2
    tiles = np.pad(tiles, edge, constant_values=255).transpose(0, 3, 1, 4, 2)  # [N,H,K,W,3]
    rows, height, columns, width, _ = tiles.shape
    return tiles.reshape(rows * height, columns * width, 3)


@mpl.rc_context(STYLE)
def augmentations(
    originals: np.ndarray,
    versions: Sequence[np.ndarray],
    names: Sequence[str],
    about: str,
    path: Path,
) -> None:
    """A grid: `originals` uint8 [N,3,H,W] in the first column, augmented `versions` beside them,
    and the `names` of their classes. `about` are the settings. Raises `OSError`."""
    pixels = mosaic(originals, versions)
    height = 0.8 + (WIDTH - 1) * pixels.shape[0] / pixels.shape[1]  # names need an inch
    figure = _figure(height, "Training images and augmented versions", about)
    axes = figure.subplots()
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()
    column, row = pixels.shape[1] / (1 + len(versions)), pixels.shape[0] / len(names)
    for number, name in enumerate(names):
        shown = _shortened(drawable(name), 18)
        axes.text(-2 * GAP, (number + 0.5) * row, shown, ha="right", va="center")
    axes.text(GAP, -GAP, "original")
    axes.text(column + GAP, -GAP, "augmented")
    _write(figure, path)
