"""Figures, as PNG files, from a history or a report."""

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifarnet.checkpoints.state import Row
from cifarnet.core.files import write_atomically
from cifarnet.reporting.metrics import Report

DPI = 120
BLUE, RED, GREEN = "#1f6fb4", "#d1495b", "#3f9c6b"


def _write(figure: Figure, path: Path) -> None:
    """Writes `figure`. Text is drawn as it is: `$` in a class name begins no formula."""
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        # Characters that the font lacks become boxes: a class may have a name in any script.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DPI))
    gc.collect()  # figures refer to themselves: without this their memory would pile up


def _epoch_axis(axes: Axes, title: str, epochs: int) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def training_curves(
    history: Sequence[Row],
    title: str,
    path: Path,
    train_loss: str = "train",
    train_accuracy: str = "train",
) -> None:
    """Loss and accuracy over the epochs, in training and on held-out images; the best is marked.

    `train_loss` and `train_accuracy` name those in the legends: they may be measured in another way
    than on held-out images. Raises `OSError`.
    """
    tested = [row for row in history if row.test_loss is not None]
    validated = [row for row in history if row.val_loss is not None]
    # A resumed run may have changed what it holds out: the last one measured counts.
    uses_val = validated and (not tested or validated[-1].epoch > tested[-1].epoch)
    part, name, measured = (
        ("val", "validation", validated) if uses_val else ("test", "test", tested)
    )
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        lines = [
            (history, f"train_{what}", BLUE, train_loss if what == "loss" else train_accuracy),
            (measured, f"{part}_{what}", RED, name),
        ]
        for rows, column, color, label in lines:
            if rows:
                style = {"marker": "o" if len(rows) < 30 else "", "ms": 3}
                values = [getattr(row, column) for row in rows]
                axes.plot([row.epoch for row in rows], values, color=color, label=label, **style)
        _epoch_axis(axes, what, history[-1].epoch)
        if what == "accuracy":
            _mark_best(axes, measured, f"{part}_accuracy", name)
        axes.legend(loc="best", framealpha=0.9)
    _write(figure, path)


def _mark_best(axes: Axes, measured: Sequence[Row], column: str, name: str) -> None:
    """Marks the first row of the highest accuracy, and shows shares as percent."""
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if measured:
        best = max(measured, key=lambda row: getattr(row, column))
        accuracy = getattr(best, column)
        which = f"best {name}" if len(measured) > 1 else name  # a single one is not chosen
        label = f"{which}: {accuracy:.2%}, epoch {best.epoch}"
        axes.plot(best.epoch, accuracy, "*", ms=13, color=RED, label=label, clip_on=False)


def learning_rate_schedule(
    rate: Callable[[int], float], steps: int, epochs: int, done: int, path: Path
) -> None:
    """The learning rate over a run of `epochs` epochs and `steps` steps.

    The first `done` epochs are filled. Raises `OSError`.
    """
    shown = np.unique(np.linspace(0, steps - 1, 2000).astype(int))
    rates = np.array([rate(int(step)) for step in shown])
    at = shown * epochs / steps
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(at, rates, color=BLUE)
    axes.fill_between(
        at,
        rates,
        where=at <= done,
        color=BLUE,
        alpha=0.15,
        lw=0,
        label=f"done: {done} of {epochs} epochs",
    )
    _epoch_axis(axes, f"learning rate (--lr), {rates.max():.3g} to {rates[-1]:.3g}", epochs)
    axes.set_xlim(0, epochs)
    axes.set_ylim(0, rates.max() * 1.05)
    axes.legend(loc="upper right")
    _write(figure, path)


def confusion_matrix(report: Report, path: Path) -> None:
    """How often each true class was taken for each class: as counts, and as shares of the class.

    Numbers are written in the cells of up to 20 classes. Raises `OSError`.
    """
    names = list(report.per_class)
    counts = np.array(report.confusion_matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(16, max(4.5, 1.8 + 0.46 * len(names)))
    figure = Figure(figsize=(2 * side + 1, side), layout="constrained")
    figure.suptitle(
        f"{_shortened(report.dataset, 60)}: {report.images} test images, top-1 {report.top1:.2%}"
    )
    panels = (("images", counts, "d"), ("share of the true class", shares, ".2f"))
    for axes, (title, values, form) in zip(figure.subplots(1, 2), panels, strict=True):
        shown = axes.imshow(values, cmap="Blues", vmin=0, vmax=max(1e-9, values.max()))
        figure.colorbar(shown, ax=axes, shrink=0.8)
        axes.set(title=title, xlabel="predicted", ylabel="true")
        _name_ticks(axes, names, also_y=True)
        if len(names) <= 20:
            for (row, column), value in np.ndenumerate(values):
                dark = value > 0.6 * values.max()
                axes.text(
                    column,
                    row,
                    format(value, form),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="w" if dark else "k",
                )
    figure.get_layout_engine().set(h_pad=0.12)
    _write(figure, path)


def _name_ticks(axes: Axes, names: list[str], also_y: bool = False) -> None:
    """Writes `names` below `axes`, and with `also_y` beside it; at most 50, tilted unless short."""
    every = -(-len(names) // 50)
    shown = [_shortened(name, 18) for name in names[::every]]
    tilt = (
        {}
        if max(map(len, shown)) <= 3
        else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    )
    axes.set_xticks(range(0, len(names), every), shown, **tilt)
    if also_y:
        axes.set_yticks(range(0, len(names), every), shown)


def _shortened(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def class_metrics(report: Report, path: Path) -> None:
    """Precision, recall and F1 of each class as bars, macro F1 as a line. Raises `OSError`."""
    names = list(report.per_class)
    at = np.arange(len(names))
    figure = Figure(figsize=(min(40, max(7, 1.5 + 0.85 * len(names))), 4.6), layout="constrained")
    axes = figure.subplots()
    for place, (key, label, color) in enumerate(
        (("precision", "precision", BLUE), ("recall", "recall", GREEN), ("f1", "F1", RED))
    ):
        values = [report.per_class[name][key] for name in names]
        axes.bar(at + (place - 1) * 0.27, values, 0.25, label=label, color=color)
    axes.axhline(
        report.macro["f1"], color="k", lw=1, ls="--", label=f"macro F1 {report.macro['f1']:.4f}"
    )
    _name_ticks(axes, names)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{_shortened(report.dataset, 60)}: {report.images} test images, by class")
    figure.legend(ncols=4, loc="outside upper center", frameon=False)
    _write(figure, path)


def augmentations(originals: np.ndarray, versions: Sequence[np.ndarray], path: Path) -> None:
    """A grid: `originals` uint8 [N,3,H,W] in the first column, augmented `versions` beside them.

    Raises `OSError`.
    """
    figure = Figure(
        figsize=(1 + len(versions) * 0.95, 0.5 + len(originals) * 0.95), layout="constrained"
    )
    grid = figure.subplots(len(originals), 1 + len(versions), squeeze=False)
    for column, images in enumerate([originals, *versions]):
        for row, image in enumerate(images):
            grid[row, column].imshow(image.transpose(1, 2, 0), interpolation="nearest")
            grid[row, column].set_axis_off()
    grid[0, 0].set_title("original", fontsize=9)
    grid[0, 1].set_title("augmented", fontsize=9, loc="left")
    _write(figure, path)
