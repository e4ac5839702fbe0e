"""A comparison of runs as one HTML page: the table, and the curves of all runs in common charts.

The page holds no script and fetches nothing. Check boxes hide curves, by CSS alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cifarnet.comparing.comparison import PAGE_BEGINS, Comparison
from cifarnet.comparing.disagreements import Disagreements
from cifarnet.comparing.past_runs import PastRun
from cifarnet.core.errors import printable
from cifarnet.core.log import clock
from cifarnet.core.templates import read_template
from cifarnet.reporting.charts import Axis, Chart, Curve, line_chart, percent, whole

COLORS = (
    *("#3b82c4", "#d9534f", "#2f9e69", "#b86fb3", "#d98324"),
    *("#1aa3b3", "#94705a", "#7a8f2c", "#7d78d8", "#d0528f"),
)
LOSS, DIVERGENCE = "loss (cross-entropy)", "training loss (divergence from the teacher)"
MEASURES = {"accuracy": "accuracy", LOSS: "loss", DIVERGENCE: "loss"}  # columns of the history
EPOCHS = Axis("epoch", whole, from_zero=True)
NONE = Disagreements()


def comparison_page(
    comparison: Comparison,
    notes: Sequence[str] = (),
    setting_charts: Sequence[Chart] = (),
    importances: Mapping[str, float] | None = None,
    differing: Disagreements = NONE,
) -> str:
    """The page. `notes` are sentences on the runs. `differing` are the images that only one of two
    runs predicts correctly. Of a sweep the page also shows `setting_charts`, and the `importances`
    of flags, which sum to 1."""
    template = read_template(Path(__file__).with_name("page.html.j2"))
    return template.render(
        begins=PAGE_BEGINS,
        names=[printable(line.name) for line in comparison.lines],
        runs=sum(len(line.runs) for line in comparison.lines),
        columns=comparison.columns(),
        settings=comparison.differing,
        colors=[COLORS[at % len(COLORS)] for at in range(len(comparison.lines))],
        charts=[
            chart
            for what in MEASURES
            for by_time in (False, True)
            if (chart := _chart(comparison, what, by_time)).curves or what != DIVERGENCE
        ],
        devices=_devices(comparison),
        notes=[printable(note) for note in notes],
        setting_charts=setting_charts,
        importances=importances or {},
        disagreements=differing,
    )


def _devices(comparison: Comparison) -> str:
    """The device of all runs, in words. If there are several, the names of the curves show them."""
    devices = {line.setting("machine") for line in comparison.lines}
    return printable(devices.pop()) if len(devices) == 1 else "different devices, named above"


def _chart(comparison: Comparison, what: str, by_time: bool) -> Chart:
    """The curves of `what`, one of `MEASURES`, by epoch or by time."""
    curves = [
        curve
        for at, line in enumerate(comparison.lines)
        for run in line.runs
        for curve in _curves(at, run, what, by_time)
    ]
    longest = max((x for curve in curves for x, _ in curve.points), default=0)
    y_axis = Axis(form=percent if what == "accuracy" else "{:.4g}".format)
    title = f"{what} by {'time' if by_time else 'epoch'}"
    return line_chart(title, curves, _time_axis(longest) if by_time else EPOCHS, y_axis)


def _time_axis(longest: float) -> Axis:
    """An axis of `longest` seconds: in hours, whose ticks are round, from one hour on."""
    if longest < 6:
        return Axis("seconds", "{:g}".format, 1, True)
    if longest < 3600:
        form, unit = (lambda s: f"{round(s) // 60}:{round(s) % 60:02d}"), 60 if longest >= 60 else 1
        return Axis("minutes:seconds", form, unit, True)
    return Axis("hours:minutes", lambda s: clock(s)[:-3], 3600, True)


def _curves(at: int, run: PastRun, what: str, by_time: bool) -> list[Curve]:
    """The curves of one run, on line `at`: on held-out images and on training images."""
    xs, seconds = [], 0.0
    for row in run.history:
        seconds += row.seconds
        xs.append(seconds if by_time else row.epoch)
    measured = [row for row in run.history if row.held_out_accuracy is not None]
    validated = measured and measured[-1].val_accuracy is not None
    parts = [("train", "train"), ("held", "val" if validated else "test")]
    # A divergence from the teacher has another scale than a cross-entropy.
    if what == DIVERGENCE:
        parts = parts[:1] if run.record.settings.get("teacher") else []
    elif what == LOSS and run.record.settings.get("teacher"):
        parts = parts[1:]
    curves = []
    for kind, part in parts:
        ys = [getattr(row, f"{part}_{MEASURES[what]}") for row in run.history]
        name = printable(f"{run.name}, {part}")
        curves.append(Curve(name, f"{kind} c{at}", list(zip(xs, ys, strict=True))))
    return curves
