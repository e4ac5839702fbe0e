import itertools
import math

from hypothesis import given
from hypothesis import strategies as st
from support.snapshots import make_row

from cifarnet.reporting import charts
from cifarnet.reporting.charts import epoch_words, nice_ticks, thinned, training_charts

numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(numbers, numbers, st.integers(3, 9))
def test_ticks_are_round_and_reach_around_the_data(a, b, most):
    low, high = min(a, b), max(a, b)
    if 0 < high - low < 1e-6 * max(abs(low), abs(high)):
        high = low
    ticks = nice_ticks(low, high, most)
    assert 2 <= len(ticks) <= most
    step = ticks[1] - ticks[0]
    tolerance = 1e-6 * max(step, abs(low), abs(high))
    assert ticks[0] - tolerance <= low < ticks[0] + step + tolerance
    assert ticks[-1] + tolerance >= high
    digits = f"{step:.3e}".partition("e")[0].rstrip("0").rstrip(".")
    assert digits in ("1", "2", "2.5", "5")


@given(st.integers(1, 5000))
def test_a_long_history_is_thinned_and_keeps_its_end(epochs):
    rows = thinned([make_row(epoch) for epoch in range(1, epochs + 1)])
    assert len(rows) <= charts.MOST_POINTS
    assert rows[-1].epoch == epochs
    assert len({b.epoch - a.epoch for a, b in itertools.pairwise(rows)}) <= 1


def test_lines_are_what_was_measured():
    history = [
        make_row(1, test_loss=None, test_accuracy=None, train_loss=2.0),
        make_row(2, test_loss=1.0, test_accuracy=0.5, train_loss=1.0),
        make_row(3, test_loss=math.inf, test_accuracy=0.75, train_loss=0.5),
    ]
    loss, accuracy, rate, speed = training_charts(history)
    assert [line.name for line in loss.lines] == ["training", "test"]
    middle = (charts.LEFT + charts.RIGHT) / 2
    assert [x for x, _ in loss.lines[0].points] == [charts.LEFT, middle, charts.RIGHT]
    assert [x for x, _ in loss.lines[1].points] == [middle]  # what is not finite has no place
    assert [len(line.points) for line in accuracy.lines] == [3, 2]
    for chart in (loss, accuracy, rate, speed):
        for line in chart.lines:
            assert all(charts.TOP <= y <= charts.BOTTOM for _, y in line.points)
    heights = [y for _, y in loss.lines[0].points]
    assert heights == sorted(heights)  # a falling loss goes down: y grows
    assert [tick.label for tick in loss.x_ticks] == ["1", "2", "3"]


def test_one_epoch_has_charts_too():
    assert all(chart.lines[0].points for chart in training_charts([make_row(7)]))


def test_an_epoch_in_words_says_what_was_measured():
    rows = [make_row(1, val_loss=0.25, val_accuracy=0.75), make_row(2, test_loss=None)]
    (first, words), (last, others) = epoch_words(rows)
    assert (first, last) == (charts.LEFT, charts.RIGHT)
    assert words.startswith(
        "epoch 1 · training loss 0.5000, accuracy 50.00 % · validation loss 0.2500, "
    )
    assert "test" not in others
