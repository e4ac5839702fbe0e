import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.snapshots import make_row

from cifarnet.core.templates import read_template
from cifarnet.reporting import charts
from cifarnet.reporting.charts import (
    FEW_POINTS,
    MOST_ROWS,
    Axis,
    Box,
    Curve,
    epoch_words,
    line_chart,
    nice_ticks,
    place,
    thinned,
    training_charts,
)

numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
BOX = Box()


@given(numbers, numbers, st.integers(3, 9))
def test_ticks_reach_around_the_data(a, b, most):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high, most)
    assert 2 <= len(ticks) <= most + 2
    tolerance = 1e-6 * max(ticks[1] - ticks[0], abs(low), abs(high))
    assert ticks[0] - tolerance <= low <= high <= ticks[-1] + tolerance


@pytest.mark.parametrize(("value", "ends"), [(1, (0, 1)), (0, (0, 1)), (0.95, (0, 1))])
def test_equal_values_lie_between_0_and_a_round_number(value, ends):
    """A share of 100 % is the top of its chart."""
    ticks = nice_ticks(value, value, 5)
    assert (ticks[0], ticks[-1]) == pytest.approx(ends)


@given(st.integers(1, 5000))
def test_a_long_history_is_thinned_and_keeps_its_end(epochs):
    rows = thinned([make_row(epoch) for epoch in range(1, epochs + 1)])
    assert len(rows) <= MOST_ROWS
    assert rows[-1].epoch == epochs
    assert len({b.epoch - a.epoch for a, b in itertools.pairwise(rows)}) <= 1


@given(st.integers(1, 5000), st.integers(1, 40))
def test_evaluated_epochs_are_thinned_by_themselves(epochs, freq):
    def accuracy(epoch: int) -> float | None:
        return 0.5 if epoch % freq == 0 or epoch == epochs else None

    rows = thinned([make_row(n, test_accuracy=accuracy(n)) for n in range(1, epochs + 1)])
    evaluated = [row.epoch for row in rows if row.test_accuracy is not None]
    there = epochs // freq + (epochs % freq > 0)
    assert min(there, MOST_ROWS // 2) <= len(evaluated) <= len(rows) <= 2 * MOST_ROWS
    assert [row.epoch for row in rows] == sorted({row.epoch for row in rows})


@given(st.lists(st.tuples(*[st.integers(0, 10**6)] * 2), max_size=40), st.booleans())
def test_points_and_ticks_lie_in_the_box(points, from_zero):
    chart = line_chart("", [Curve("", "", points)], Axis(from_zero=from_zero), Axis())
    ends = [end.split() for curve in chart.curves for end in curve.path[1:].split("L")]
    assert len(ends) == len(points)
    xs = [tick.at for tick in chart.x_ticks] + [float(x) for x, _ in ends]
    ys = [tick.at for tick in chart.y_ticks] + [float(y) for _, y in ends]
    assert all(BOX.left <= x <= BOX.right for x in xs)
    assert all(BOX.top <= y <= BOX.bottom for y in ys)
    dots = [dot for curve in chart.curves for dot in curve.dots]
    assert len(dots) == (len(points) if len(points) <= FEW_POINTS else 0)


def test_a_place_is_kept_for_points_without_a_value():
    """So all charts of a run have the same epochs, epoch 0 too."""
    points = [(0, None), (1, 0.5), (2, 0.5), (3, 0.5)]
    (curve,) = line_chart("", [Curve("", "", points)], Axis(), Axis()).curves
    ends = [float(end.split()[0]) for end in curve.path[1:].split("L")]
    at = place(0, 3, BOX.left, BOX.right)
    assert ends == [at(1), at(2), at(3)]


def test_curves_are_what_was_measured():
    history = [
        make_row(1, test_loss=None, test_accuracy=None, train_loss=2.0),
        make_row(2, test_loss=1.0, test_accuracy=0.5, train_loss=1.0),
        make_row(3, test_loss=math.inf, test_accuracy=0.75, train_loss=0.5),
    ]
    loss, accuracy, rate, speed = training_charts(history)
    assert [curve.name for curve in loss.curves] == ["training", "test"]
    assert [len(chart.curves) for chart in (rate, speed)] == [1, 1]
    middle = (BOX.left + BOX.right) / 2
    training, test = (curve.dots for curve in loss.curves)
    assert [dot.x for dot in training] == [BOX.left, middle, BOX.right]
    assert [dot.x for dot in test] == [middle]  # what is not finite has no place
    assert [len(curve.dots) for curve in accuracy.curves] == [3, 2]
    assert accuracy.curves[1].dots[1].words == "test: 75 % at 3"
    heights = [dot.y for dot in training]
    assert heights == sorted(heights)  # a falling loss goes down: y grows
    assert [tick.label for tick in loss.x_ticks] == ["1", "2", "3"]


def test_long_labels_at_the_ends_stay_inside_the_chart():
    names = ["albumentations", "none", "tensorboard"]
    axis = Axis("engine", lambda at: names[int(at)])
    chart = line_chart("accuracy", [Curve("a", "", [(0, 0.5), (1, 0.5), (2, 0.6)])], axis, Axis())
    draw = read_template(Path(charts.__file__).with_name("charts.html.j2")).module.line_chart
    anchors = [f'text-anchor="{anchor}">' for anchor in ("start", "middle", "end")]
    for anchor, name in zip(anchors, names, strict=True):
        assert f"{anchor}{name}<" in draw(chart)


def test_an_epoch_in_words_names_what_was_measured():
    rows = [make_row(1, val_loss=0.25, val_accuracy=0.75), make_row(2, test_loss=None)]
    (first, words), (last, others) = epoch_words(rows)
    assert (first, last) == (BOX.left, BOX.right)
    assert words.startswith("epoch 1 · training loss 0.5000, accuracy 50.00 % · validation loss ")
    assert "test" not in others
