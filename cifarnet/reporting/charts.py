"""Line charts as SVG: where curves, dots and ticks lie. charts.html.j2 draws them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cifarnet.checkpoints.history import Row

MOST_ROWS = 500  # of a history in a chart, and as many evaluated ones
FEW_POINTS = 30  # a curve of up to so many points shows each as a dot
X_TICKS, Y_TICKS = 8, 6  # about so many


class Box(NamedTuple):
    """The size of a drawing, and the edges of its data, in the units of the drawing."""

    width: float = 360
    height: float = 216
    left: float = 44
    right: float = 350
    top: float = 10
    bottom: float = 176


class Curve(NamedTuple):
    """Values to draw: points (x, y). A y that is None or not finite is left out."""

    name: str
    style: str  # CSS classes
    points: Sequence[tuple[float, float | None]]


class Axis(NamedTuple):
    """How the values of an axis are written, and where it begins."""

    label: str = ""
    form: Callable[[float], str] = "{:g}".format
    unit: float = 1  # ticks are round multiples of it
    from_zero: bool = False
    ticks: int = X_TICKS  # about so many, along x


class Tick(NamedTuple):
    """A mark on an axis: where, and its label."""

    at: float
    label: str


class Dot(NamedTuple):
    """A point of a curve, and its values in words."""

    x: float
    y: float
    words: str


class DrawnCurve(NamedTuple):
    """A curve as it is drawn."""

    name: str
    style: str
    path: str  # of SVG
    dots: list[Dot]


class Chart(NamedTuple):
    """A chart as it is drawn."""

    title: str
    x_label: str
    curves: list[DrawnCurve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    box: Box = Box()


def line_chart(title: str, curves: Sequence[Curve], x_axis: Axis, y_axis: Axis) -> Chart:
    """Lays out `curves`, all over the same axes. Points without a value and curves without a point
    are left out; the horizontal axis has a place for them."""
    measured = [
        curve._replace(points=points)
        for curve in curves
        if (points := [(x, y) for x, y in curve.points if y is not None and math.isfinite(y)])
    ]
    xs = [x for curve in curves for x, _ in curve.points] or [0, 1]
    ys = [y for curve in measured for _, y in curve.points] or [0, 1]
    box = Box()
    low, high = 0 if x_axis.from_zero else min(xs), max(xs)
    x_ticks = [
        x_axis.unit * t for t in nice_ticks(low / x_axis.unit, high / x_axis.unit, x_axis.ticks)
    ]
    x_at = place(low, high, box.left, box.right)
    y_ticks = nice_ticks(0 if y_axis.from_zero else min(ys), max(ys), Y_TICKS)
    y_at = place(y_ticks[0], y_ticks[-1], box.bottom, box.top)

    def drawn(curve: Curve) -> DrawnCurve:
        dots = [
            Dot(x_at(x), y_at(y), f"{curve.name}: {y_axis.form(y)} at {x_axis.form(x)}")
            for x, y in curve.points
        ]
        path = "M" + "L".join(f"{dot.x:g} {dot.y:g}" for dot in dots)
        return DrawnCurve(curve.name, curve.style, path, dots if len(dots) <= FEW_POINTS else [])

    return Chart(
        title,
        x_axis.label,
        [drawn(curve) for curve in measured],
        [Tick(x_at(x), label) for x in x_ticks if low <= x <= high and (label := x_axis.form(x))],
        [Tick(y_at(y), y_axis.form(y)) for y in y_ticks],
    )


def place(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From a value in [low, high] to its place in [start, end], to a tenth."""
    span = (high - low) or 1
    return lambda value: round(start + (end - start) * (value - low) / span, 1)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """About `most` round numbers at equal distances; [low, high] lies between the outer ones."""
    if low == high:  # as far as 0, so that a share stays below 100 %
        low, high = (min(low, 0), max(high, 0)) if low else (0, 1)
    least = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(least))
    step = power * next(n for n in (1, 2, 2.5, 5, 10) if power * n >= least * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


# --- the history of one run ---


def whole(value: float) -> str:
    """The text of a whole number; empty for a fraction."""
    return f"{value:g}" if value == int(value) else ""


def percent(share: float) -> str:
    """A share in percent, with up to four digits."""
    return f"{100 * share:.4g} %"


def thinned(history: Sequence[Row]) -> list[Row]:
    """At most about `MOST_ROWS` rows at equal distances, and as many of those that are evaluated,
    with the last one and epoch 0, if any."""
    start = [row for row in history[:1] if row.epoch == 0]
    trained = history[len(start) :]
    evaluated = [row for row in trained if row.held_out_accuracy is not None]
    kept = {
        row.epoch: row
        for rows in (trained, evaluated)
        for row in rows[::-1][:: max(1, math.ceil(len(rows) / MOST_ROWS))]
    }
    return [*start, *(kept[epoch] for epoch in sorted(kept))]


def training_charts(history: Sequence[Row]) -> list[Chart]:
    """Loss, accuracy, learning rate and speed of each epoch of `history`, not empty."""
    parts = (("training", "blue", "train"), ("validation", "green", "val"), ("test", "red", "test"))
    epochs = Axis("epoch", whole)

    def curve(name: str, style: str, column: str) -> Curve:
        return Curve(name, style, [(row.epoch, getattr(row, column)) for row in history])

    charts = [
        line_chart(what, [curve(name, s, f"{part}_{what}") for name, s, part in parts], epochs, y)
        for what, y in (("loss", Axis()), ("accuracy", Axis(form=percent)))
    ]
    for title, column in (
        ("learning rate", "lr"),
        ("training images per second", "images_per_second"),
    ):
        curves = [curve(title, "blue", column)]
        charts.append(line_chart(title, curves, epochs, Axis(from_zero=True)))
    return charts


def epoch_words(history: Sequence[Row]) -> list[tuple[float, str]]:
    """Where each epoch of `history` is in a chart, and its figures in words."""
    if not history:
        return []
    box = Box()
    at = place(history[0].epoch, history[-1].epoch, box.left, box.right)
    return [(at(row.epoch), _in_words(row)) for row in history]


def _in_words(row: Row) -> str:
    parts = [f"epoch {row.epoch}"]
    for name, part in (("training", "train"), ("validation", "val"), ("test", "test")):
        loss, accuracy = (getattr(row, f"{part}_{what}") for what in ("loss", "accuracy"))
        if loss is not None:
            parts.append(f"{name} loss {loss:.4f}, accuracy {100 * accuracy:.2f} %")
    if row.epoch:
        parts += [f"learning rate {row.lr:.3g}", f"{row.images_per_second:.0f} images per second"]
    return " \N{MIDDLE DOT} ".join([*parts, f"{row.seconds:.1f} s"])
