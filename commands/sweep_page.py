"""The results of a sweep: compare.py's table, and charts of each setting."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from cifarnet.comparing.comparison import METRICS, Comparison, compare
from cifarnet.comparing.past_runs import PastRun
from cifarnet.reporting.charts import X_TICKS, Axis, Chart, Curve, line_chart, percent
from commands.sweep_file import Range


def sorted_comparison(runs: Sequence[PastRun]) -> Comparison:
    """The comparison of `runs`; the highest mean validation accuracy comes first."""
    validation = next(metric for metric in METRICS if metric.name == "validation")
    comparison = compare(runs)
    lines = sorted(comparison.lines, key=lambda line: line.figure(validation)[0] or 0, reverse=True)
    return replace(comparison, lines=tuple(lines))


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that ran to their end."""
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def importances(study: optuna.Study) -> dict[str, float]:
    """Optuna's importance of each flag, from functional ANOVA; they sum to 1.

    Empty where fewer than two accuracies, or fewer than two settings, differ.
    """
    trials = finished(study.get_trials(deepcopy=False))
    accuracies = {trial.value for trial in trials}
    settings = {str(trial.params) for trial in trials}
    if len(accuracies) < 2 or len(settings) < 2:
        return {}
    return optuna.importance.get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(seed=0)
    )


def setting_charts(
    trials: Sequence[FrozenTrial], space: dict[str, Sequence[Any] | Range]
) -> list[Chart]:
    """Validation accuracy by each flag that differs; a dot is a finished trial."""
    return [
        _chart(name, values, finished(trials))
        for name, values in space.items()
        if isinstance(values, Range) or len(values) > 1
    ]


def _chart(name: str, values: Sequence[Any] | Range, trials: Sequence[FrozenTrial]) -> Chart:
    """Choices stand beside each other, numbers in their order; a range has a scale."""
    if not isinstance(values, Range):
        if all(type(value) in (int, float) for value in values):
            values = sorted(values)
        places = {repr(value): at for at, value in enumerate(values)}

        def label(at: float) -> str:
            return str(values[int(at)]) if at in range(len(values)) else ""

        points = [(places[repr(trial.params[name])], trial.value) for trial in trials]
        axis = Axis(name, label, ticks=max(X_TICKS, len(values)))  # each choice has a label
    elif values.log:
        points = [(math.log10(trial.params[name]), trial.value) for trial in trials]
        axis = Axis(name, lambda at: f"{10**at:.3g}")
    else:
        points = [(trial.params[name], trial.value) for trial in trials]
        axis = Axis(name)
    curves = [
        Curve(f"trial {trial.number}", "trial", [point])
        for trial, point in zip(trials, points, strict=True)
    ]
    return line_chart(f"validation accuracy by {name}", curves, axis, Axis(form=percent))
