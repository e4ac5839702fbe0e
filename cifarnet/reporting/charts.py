"""The geometry of report.html's line charts, in the units of an SVG picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # compare.py does without torch
    from cifarnet.checkpoints.state import Row

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 350, 10, 176  # the edges of the data
MOST_POINTS = 500  # epochs in a chart
FEW_POINTS = 30  # up to these, each is marked


class Line(NamedTuple):
    """A line: its name in the legend, its colour's name, and where it runs."""

    name: str
    colour: str
    points: list[tuple[float, float]]


class Tick(NamedTuple):
    """A mark on an axis: where, and its label."""

    at: float
    label: str


class Chart(NamedTuple):
    """One chart over the epochs."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: bool  # whether points are marked


def thinned(history: Sequence[Row]) -> list[Row]:
    """At most about `MOST_POINTS` rows at equal distances; the last one is among them."""
    step = math.ceil(len(history) / MOST_POINTS)
    return list(history[::-1][:: max(1, step)][::-1])


def training_charts(history: Sequence[Row]) -> list[Chart]:
    """Loss, accuracy, learning rate and speed of each epoch of `history`, not empty."""
    parts = (("training", "blue", "train"), ("validation", "green", "val"), ("test", "red", "test"))
    charts = []
    for what in ("loss", "accuracy"):
        columns = [(name, colour, f"{part}_{what}") for name, colour, part in parts]
        charts.append(_chart(what, columns, history, percent=what == "accuracy"))
    charts.append(_chart("learning rate", [("", "blue", "lr")], history, from_zero=True))
    speed = [("", "blue", "images_per_second")]
    charts.append(_chart("training images a second", speed, history, from_zero=True))
    return charts


def epoch_words(history: Sequence[Row]) -> list[tuple[float, str]]:
    """Where each epoch of `history` is in a chart, and its figures in words."""
    if not history:
        return []
    at = _across(history)
    return [(at(row.epoch), _in_words(row)) for row in history]


def _in_words(row: Row) -> str:
    parts = [f"epoch {row.epoch}"]
    for name, part in (("training", "train"), ("validation", "val"), ("test", "test")):
        loss, accuracy = (getattr(row, f"{part}_{what}") for what in ("loss", "accuracy"))
        if loss is not None:
            parts.append(f"{name} loss {loss:.4f}, accuracy {100 * accuracy:.2f} %")
    parts += [f"learning rate {row.lr:.3g}", f"{row.images_per_second:.0f} images a second"]
    return " \N{MIDDLE DOT} ".join([*parts, f"{row.seconds:.1f} s"])


def _across(history: Sequence[Row]) -> Callable[[float], float]:
    """From an epoch to its place from left to right."""
    first, last = history[0].epoch, history[-1].epoch
    return lambda epoch: round(LEFT + (RIGHT - LEFT) * (epoch - first) / max(1, last - first), 1)


def _chart(
    title: str,
    columns: Sequence[tuple[str, str, str]],
    history: Sequence[Row],
    percent: bool = False,
    from_zero: bool = False,
) -> Chart:
    """A chart of `columns`: name, colour and field of the rows."""
    found = [
        (name, colour, [(row.epoch, getattr(row, field)) for row in history])
        for name, colour, field in columns
    ]
    measured = [
        (name, colour, pairs)
        for name, colour, all_pairs in found
        if (pairs := [(a, b) for a, b in all_pairs if b is not None and math.isfinite(b)])
    ]
    values = [y for _, _, pairs in measured for _, y in pairs]
    low, high = 0.0 if from_zero else min(values), max(values)
    y_ticks = nice_ticks(low, high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    first, last, x = history[0].epoch, history[-1].epoch, _across(history)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    whole = [tick for tick in nice_ticks(first, last, 8) if tick == int(tick) and tick >= first]
    return Chart(
        title,
        [Line(name, colour, [(x(a), y(b)) for a, b in pairs]) for name, colour, pairs in measured],
        [Tick(x(tick), f"{tick:g}") for tick in whole if tick <= last],
        [Tick(y(tick), f"{100 * tick:g} %" if percent else f"{tick:g}") for tick in y_ticks],
        len(history) <= FEW_POINTS,
    )


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Two to `most` round numbers at equal distances.

    The first is `low` or below it, the last is `high` or above it, by less than a distance each.
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20)):
        start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        end = max(end, start + 1)
        if end - start < most:
            return [float(f"{n * step:.12g}") for n in range(start, end + 1)]
    raise AssertionError("a step of twenty tenths is enough")
