"""A comparison of runs as one HTML page: the table, and the curves over each other.

The page holds no script and fetches nothing. Check boxes hide curves, by CSS alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cifarnet.core.errors import printable
from cifarnet.core.log import clock
from cifarnet.core.templates import read_template
from cifarnet.reporting.charts import nice_ticks
from cifarnet.reporting.comparison import Comparison
from cifarnet.reporting.past_runs import PastRun

WIDTH, HEIGHT = 460, 300  # of a chart, in the units of its drawing
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 10, 42  # its margins
MOST_TICKS = 8  # of an axis
DOTTED = 40  # a line of at most so many points shows each as a dot
COLORS = (
    *("#3b82c4", "#d9534f", "#2f9e69", "#b86fb3", "#d98324"),
    *("#1aa3b3", "#94705a", "#7a8f2c", "#7d78d8", "#d0528f"),
)


class Series(NamedTuple):
    """One curve: whose it is, of which images, its name, and its points (x, y)."""

    line: int
    part: str  # "held", on validation or test images, or "train"
    name: str
    points: list[tuple[float, float]]


class Dot(NamedTuple):
    """A point of a drawn curve, and what it says."""

    x: str
    y: str
    says: str


class Curve(NamedTuple):
    """A curve as it is drawn."""

    line: int
    part: str
    name: str
    path: str  # of SVG
    dots: list[Dot]


@dataclass(frozen=True)
class Chart:
    """What the template draws: curves and the ticks of both axes, in the units of the drawing."""

    title: str
    axis: str
    x_ticks: list[tuple[str, str]]  # where, and what it says
    y_ticks: list[tuple[str, str]]
    curves: list[Curve]


def page(comparison: Comparison, begins: str, tests: str = "") -> str:
    """The page, which begins with `begins`. `tests` is a sentence on the runs, or empty."""
    template = read_template(Path(__file__).with_name("comparison.html.j2"))
    return template.render(
        begins=begins,
        names=[printable(name) for name in comparison.names()],
        columns=comparison.results() | comparison.settings(),
        settings=len(comparison.differing),
        colors=[COLORS[at % len(COLORS)] for at in range(len(comparison.lines))],
        charts=[
            _chart(comparison, what, by_time)
            for what in ("accuracy", "loss")
            for by_time in (False, True)
        ],
        box={"w": WIDTH, "h": HEIGHT, "l": LEFT, "r": RIGHT, "t": TOP, "b": BOTTOM},
        tests=printable(tests),
    )


def _chart(comparison: Comparison, what: str, by_time: bool) -> Chart:
    """The curves of `what`, "accuracy" or "loss", by epoch or by time."""
    every = [
        series
        for at, line in enumerate(comparison.lines)
        for run in line.runs
        for series in _series(at, run, what, by_time)
    ]
    y_form = _share if what == "accuracy" else "{:g}".format
    xs = [x for series in every for x, _ in series.points] or [1.0]
    ys = [y for series in every for _, y in series.points] or [0.0, 1.0]
    if not by_time:
        unit, axis, x_form = 1.0, "epoch", "{:g}".format
    elif max(xs) < 3600:
        unit, axis, x_form = 60.0, "minutes:seconds", _minutes
    else:  # hours have round numbers, not seconds
        unit, axis, x_form = 3600.0, "hours:minutes", _hours
    x_ticks = [unit * tick for tick in nice_ticks(0.0, max(xs) / unit, MOST_TICKS)]
    y_ticks = nice_ticks(min(ys), max(ys), MOST_TICKS)
    low, high = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> str:
        return f"{LEFT + x / x_ticks[-1] * (WIDTH - LEFT - RIGHT):.1f}"

    def y_at(y: float) -> str:
        return f"{HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP):.1f}"

    return Chart(
        f"{what} by {'time' if by_time else 'epoch'}",
        axis,
        [(x_at(x), x_form(x)) for x in x_ticks if by_time or x == int(x)],
        [(y_at(y), y_form(y)) for y in y_ticks],
        [_curve(series, what, x_form, (x_at, y_at)) for series in every],
    )


def _series(at: int, run: PastRun, what: str, by_time: bool) -> list[Series]:
    """The curves of one run that has measured something: on held-out and on training images."""
    part = run.best[2] if run.best else "test"
    found = []
    for kind, column in (("train", f"train_{what}"), ("held", f"{part}_{what}")):
        points, seconds = [], 0.0
        for row in run.history:
            seconds += row["seconds"] or 0.0
            if row[column] is not None:
                points.append((seconds if by_time else row["epoch"], row[column]))
        name = f"{run.name}, {column.partition('_')[0]}"
        found += [Series(at, kind, printable(name), points)] if points else []
    return found


def _curve(
    series: Series,
    what: str,
    x_form: Callable[[float], str],
    at: tuple[Callable[[float], str], Callable[[float], str]],
) -> Curve:
    points = [(at[0](x), at[1](y)) for x, y in series.points]
    value = "{:.2%}".format if what == "accuracy" else "{:.4f}".format
    dots = [
        Dot(x, y, f"{series.name}: {value(of[1])} at {x_form(of[0])}")
        for (x, y), of in zip(points, series.points, strict=True)
    ]
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    few = len(dots) <= DOTTED and series.part == "held"
    return Curve(series.line, series.part, series.name, path, dots if few else [])


def _share(share: float) -> str:
    return f"{100 * share:g}%"


def _hours(seconds: float) -> str:
    return clock(seconds)[:-3]


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"
