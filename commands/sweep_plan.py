"""What a sweep would run, and how long that takes: sweep.py --dry-run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarnet.core.files import exists
from cifarnet.core.log import clock, print_line
from cifarnet.settings import FLAGS
from cifarnet.settings.training import BATCH_SIZE
from cifarnet.training.plan import Plan
from commands.bench_training import step
from commands.sweep_file import Sweep
from commands.sweep_study import JOURNAL, Study, run_dir
from commands.sweeping import past_runs, run_command_line
from data import load_splits


def show_plan(sweep: Sweep, folder: Path) -> None:
    """Prints the commands that are left, and an estimate of their time."""
    left = list(enumerate(sweep.settings))
    searched = sweep.trials
    if exists(folder / JOURNAL):
        left, searched = Study(sweep, folder, reads_only=True).left()
    for number, values in left:
        print_line(shlex.join(run_command_line(sweep, values, run_dir(folder, number))))
    if searched:
        print_line(f"and {searched} trials whose values the search chooses")
    print_line(f"to run: {len(left) + searched}")
    if left or searched:
        print_line(_estimate(sweep, folder, left, searched))


def _estimate(
    sweep: Sweep, folder: Path, left: Sequence[tuple[int, dict[str, Any]]], searched: int
) -> str:
    """The time of the runs that are `left`, with number and values, and of `searched` ones, in
    words."""
    settings = [sweep.run_settings(values) for _, values in left] + [sweep.example()] * searched
    runs = {run.name: run for run in past_runs(folder)}
    rows = [row for run in runs.values() for row in run.history if row.epoch]
    if rows:
        interrupted = [runs.get(run_dir(folder, number).name) for number, _ in left]
        epochs = sum(one.training.epochs for one in settings)
        epochs -= sum(run.epochs_done for run in interrupted if run)
        seconds = epochs * sum(row.seconds for row in rows) / len(rows)
        source = f"{len(rows)} epochs so far"
    else:
        first = settings[0]
        flags = {n: v for n, v in first.flags.items() if v != FLAGS[n].default and n != "device"}
        parts = first.training.accumulate
        flags.setdefault("batch_size", BATCH_SIZE // parts * parts)
        images = len(load_splits(first.data, print_line).train)
        plans = [Plan(one, 1) for one in settings]
        pixels = sum(plan.cost(epoch) for plan in plans for epoch in range(1, plan.epochs + 1))
        seconds = images / step(first.precision.device, **flags) * pixels
        seconds /= plans[0].image_size(1) ** 2
        source = "training steps of the first run, without augmentation and evaluation"
    return f"about {clock(seconds)}, one after the other, by {source}"
