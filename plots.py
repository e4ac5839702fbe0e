"""Figures, as PNG files, from a history or a report."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifarnet.core.files import write_atomically
from cifarnet.reporting.metrics import Report

DPI = 120
BLUE, RED, GREEN = "#1f6fb4", "#d1495b", "#3f9c6b"


def _write(figure: Figure, path: Path) -> None:
    """Raises `OSError`. Names from files and folders are drawn as they are: no text here is mathematics."""
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DPI))
    gc.collect()  # a figure holds itself in circles, and megabytes of pixels: over many epochs they would pile up


def _epoch_axis(axes: Axes, title: str, epochs: int) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def training_curves(
    history: Sequence[dict[str, Any]], title: str, path: Path, train_loss: str = "train"
) -> None:
    """Loss and accuracy over the epochs, training beside validation or test, the best epoch marked; `train_loss` is
    what the legend calls that loss, which may be another than the held-out one."""
    measured = [
        row for row in history if row["val_loss"] is not None or row["test_loss"] is not None
    ]
    held_out = "test" if not measured or measured[-1]["val_loss"] is None else "val"
    named = {"val": "validation", "test": "test"}[held_out]
    measured = [
        row for row in measured if row[f"{held_out}_loss"] is not None
    ]  # a resume may have changed the kind
    epochs = history[-1]["epoch"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        of_training = train_loss if what == "loss" else "train"
        for rows, part, color, label in (
            (history, "train", BLUE, of_training),
            (measured, held_out, RED, named),
        ):
            if not rows:  # not measured yet
                continue
            values = [row[f"{part}_{what}"] for row in rows]
            style = {
                "marker": "o" if len(rows) < 30 else "",
                "ms": 3,
                "color": color,
                "label": label,
            }
            axes.plot([row["epoch"] for row in rows], values, **style)
        _epoch_axis(axes, what, epochs)
        if what == "accuracy":
            if measured:
                best = max(measured, key=lambda row: row[f"{held_out}_accuracy"])
                best_accuracy = best[f"{held_out}_accuracy"]
                which = (
                    f"best {named}" if len(measured) > 1 else named
                )  # a single one is not the best of several
                label = f"{which}: {best_accuracy:.2%}, epoch {best['epoch']}"
                axes.plot(
                    best["epoch"], best_accuracy, "*", ms=13, color=RED, label=label, clip_on=False
                )
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(loc="best", framealpha=0.9)
    _write(figure, path)


def learning_rate_schedule(
    rate: Callable[[int], float], steps: int, epochs: int, done: int, path: Path
) -> None:
    """The learning rate of every step of a run of `epochs` epochs and `steps` steps; the first `done` epochs filled."""
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
    """Counts, and the share of each true class that was taken for each class; numbers are written up to 20 classes."""
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
    """Writes `names` under `axes`, tilted unless they are short, and beside it; of many, some."""
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
    """Precision, recall and F1 of each class as bars, the macro F1 as a line."""
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
    """A grid: `originals` uint8 [N,3,H,W] in the first column, augmented `versions` of the same shape beside them."""
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
