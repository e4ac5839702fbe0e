"""Compares runs: the settings that differ, and the results. As text and as CSV."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cifarnet.comparing.past_runs import UNKNOWN, PastRun
from cifarnet.core.errors import printable
from cifarnet.core.log import clock
from cifarnet.core.text import csv_text
from cifarnet.settings import FLAGS, OF_THE_RESULT

# How the files of a comparison begin. Only files that begin like this are replaced.
CSV_BEGINS, PAGE_BEGINS = "run,runs,", "<!doctype html><!-- comparison of runs -->"

# The last two change the speed only.
COMPARED = tuple(name for name in FLAGS if name in (*OF_THE_RESULT, "num_workers", "keep_memory"))
FACTS = {  # that are not flags
    "images": lambda run: run.record.dataset,
    "test images": lambda run: run.record.test_images and f"{run.record.test_images:,}",
    "machine": lambda run: run.record.machine,
    "tta": lambda run: run.record.tta,
    "weights": lambda run: run.record.weights or run.record.settings.get("evaluate"),
}
# Runs that differ in one of these are never one line.
EVALUATION_FACTS = tuple(name for name in FACTS if name != "machine")


def _tested_on(run: PastRun) -> str:
    """The data set of the figures in the table."""
    return run.record.tested_on or _shown(run, "images")


class Metric(NamedTuple):
    """A figure of a run: its name in a CSV file, its title, and how it is written."""

    name: str
    title: str
    of: Callable[[PastRun], float | None]
    form: Callable[[float], str]


METRICS = (
    Metric("top1", "top-1", lambda run: run.top1, "{:.2%}".format),
    Metric("validation", "validation", lambda run: run.validation, "{:.2%}".format),
    Metric("corrupted", "corrupted", lambda run: run.record.corrupted, "{:.2%}".format),
    Metric("best", "best", lambda run: run.best and run.best.held_out_accuracy, "{:.2%}".format),
    Metric("best_epoch", "its epoch", lambda run: run.best and run.best.epoch, "{:.4g}".format),
    Metric("seconds", "time", lambda run: run.seconds, clock),
    Metric("images_per_second", "images/s", lambda run: run.images_per_second, "{:,.0f}".format),
    Metric(
        "calibration_error",
        "calibration error",
        lambda run: run.record.calibration_error,
        "{:.2%}".format,
    ),
    Metric(
        "calibration_error_before",
        "uncalibrated",
        lambda run: run.record.calibration_error_before,
        "{:.2%}".format,
    ),
    Metric("parameters", "parameters", lambda run: run.record.parameters, "{:,.0f}".format),
)


@dataclass(frozen=True)
class Line:
    """A run, or several that differ only in their seed and are evaluated in the same way."""

    runs: tuple[PastRun, ...]

    @property
    def name(self) -> str:
        """The name of the run, or of the first one of several."""
        first, more = self.runs[0].name, len(self.runs) - 1
        return f"{first} and {more} more" if more else first

    def setting(self, name: str) -> str:
        """The value of a flag in words; the seeds of several runs are listed."""
        return ", ".join(dict.fromkeys(_shown(run, name) for run in self.runs))

    def figure(self, metric: Metric) -> tuple[float | None, float | None]:
        """Mean and sample deviation over those runs that have the figure; None: of too few."""
        values = [value for run in self.runs if (value := metric.of(run)) is not None]
        mean = statistics.mean(values) if values else None
        return mean, statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Lines of the table, and the columns that tell them apart."""

    lines: tuple[Line, ...]
    differing: tuple[str, ...]  # flags, and what else is in `FACTS`
    metrics: tuple[Metric, ...]  # those that at least one run has

    def columns(self) -> dict[str, list[str]]:
        """The results, and the settings that differ, in words: cells by title of the column."""
        counts = [str(len(line.runs)) for line in self.lines]
        columns = {} if set(counts) == {"1"} else {"runs": counts}
        for metric in self.metrics:
            columns[metric.title] = [_in_words(line, metric) for line in self.lines]
        columns["epochs done"] = [line.runs[0].epochs_in_words for line in self.lines]
        columns["best on"] = [_best_on(line) for line in self.lines]
        return columns | {
            name: [line.setting(name) for line in self.lines] for name in self.differing
        }

    @property
    def warning(self) -> str:
        """Says that the figures are of different test images; empty: as far as known, they are
        not. McNemar's test compares predictions.csv, which may be of other images."""
        places = [(_tested_on(line.runs[0]), line.setting("test images")) for line in self.lines]
        if all(len(set(column) - {UNKNOWN}) < 2 for column in zip(*places, strict=True)):
            return ""
        tested: dict[str, list[str]] = {}
        for line, (dataset, count) in zip(self.lines, places, strict=True):
            tested.setdefault(f"{dataset}, {count} test images", []).append(line.name)
        listed = "; ".join(f"{', '.join(names)}: {where}" for where, names in tested.items())
        return f"warning: the figures in the table are of different test images: {listed}"

    @property
    def tested_elsewhere(self) -> str:
        """Names the runs whose figures are of other images than their epochs; empty: none."""
        runs = [run for line in self.lines for run in line.runs if run.record.tested_on]
        if not runs:
            return ""
        names = ", ".join(run.name for run in runs)
        trained = ", ".join(dict.fromkeys(_shown(run, "images") for run in runs))
        tested = ", ".join(dict.fromkeys(map(_tested_on, runs)))
        return (
            f"{names}: trained on {trained}; curves and best epoch are of its test images, "
            f"all other figures of those of {tested}"
        )


def compare(runs: Sequence[PastRun]) -> Comparison:
    """Groups `runs` by their settings, and finds what differs between them."""
    lines: dict[Any, dict[str, PastRun]] = {}
    for run in runs:
        same = [_shown(run, name) for name in (*COMPARED, *EVALUATION_FACTS) if name != "seed"]
        key, seed = (*same, _tested_on(run), run.epochs_done), _shown(run, "seed")
        if seed == UNKNOWN or seed in lines.get(key, {}):
            key = run.source  # a seed that ran twice is not two seeds
        lines.setdefault(key, {})[seed] = run
    return Comparison(
        tuple(Line(tuple(by_seed.values())) for by_seed in lines.values()),
        tuple(
            name
            for name in (*COMPARED, *FACTS)
            if len({_shown(run, name) for run in runs} - {UNKNOWN}) > 1
        ),
        tuple(m for m in METRICS if any(m.of(run) is not None for run in runs)),
    )


def _shown(run: PastRun, name: str) -> str:
    """A setting of `run`, or a fact, in words."""
    if name in FACTS:
        return FACTS[name](run) or UNKNOWN
    if name not in run.record.settings:
        return UNKNOWN
    value = run.record.settings[name]
    if value is None or isinstance(value, bool):
        return {True: "on", False: "off", None: "-"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _in_words(line: Line, metric: Metric) -> str:
    mean, deviation = line.figure(metric)
    return " ± ".join(
        metric.form(value) for value in (mean, deviation or None) if value is not None
    )


def _best_on(line: Line) -> str:
    """The images that the best epoch was chosen by."""
    return ", ".join(dict.fromkeys(run.best_on for run in line.runs if run.best))


def as_text(comparison: Comparison, width: int) -> str:
    """The table, results first; where it is wider than `width`, in blocks that begin with names."""
    names = _column("run", [line.name for line in comparison.lines])
    columns = [_column(*item) for item in comparison.columns().items()]
    return "\n\n".join(
        "\n".join("  ".join(cells).rstrip() for cells in zip(names, *block, strict=True))
        for block in _blocks(columns, width - len(names[0]))
    )


def _column(title: str, cells: Sequence[str]) -> list[str]:
    """Title and cells, all of one width."""
    shown = [printable(cell) for cell in (title, *cells)]
    width = max(map(len, shown))
    return [cell.ljust(width) for cell in shown]


def _blocks(columns: list[list[str]], width: int) -> list[list[list[str]]]:
    """`columns` in as few blocks as fit into `width`, each at least one column."""
    blocks, free = [], 0
    for column in columns:
        size = len(column[0]) + 2
        if size > free:
            blocks.append([])
            free = width
        blocks[-1].append(column)
        free -= size
    return blocks


def as_csv(comparison: Comparison) -> str:
    """The table as CSV: shares in [0, 1], seconds, and sample deviations beside the means."""
    names = [
        name for metric in comparison.metrics for name in (metric.name, f"{metric.name}_deviation")
    ]
    rows = [
        ["run", "runs", *comparison.differing, *names, "epochs_done", "epochs_asked", "best_on"]
    ]
    for line in comparison.lines:
        figures = [value for metric in comparison.metrics for value in line.figure(metric)]
        settings = [line.setting(name) for name in comparison.differing]
        epochs = line.runs[0].epochs_done, line.setting("epochs")
        rows.append([line.name, len(line.runs), *settings, *figures, *epochs, _best_on(line)])
    return csv_text(rows)
