"""Runs a sweep: each trial is a run of main.py in a process and a folder of its own."""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState

from cifarnet.comparing.comparison import as_text
from cifarnet.comparing.page import comparison_page
from cifarnet.comparing.past_runs import PastRun, read_runs
from cifarnet.core.errors import RunError, UserError, machine_errors, os_errors, reason
from cifarnet.core.files import exists, files_in, write_named
from cifarnet.core.log import clock, print_line
from cifarnet.core.signals import Interrupted, Signals
from cifarnet.core.threads import available_cores, thread_limit
from cifarnet.images.cifar import CIFAR, read_cifar
from cifarnet.settings.parser import flags_of
from commands.sweep_file import Sweep
from commands.sweep_page import importances, setting_charts, sorted_comparison
from commands.sweep_study import JOURNAL, Study, run_dir

MAIN = Path(__file__).parents[1] / "main.py"
POLL = 0.5  # seconds between two looks at the runs
OUTPUT = "output.txt"  # what a run prints, in its folder
AFTER_SIGTERM = (128 + signal.SIGTERM, -signal.SIGTERM)  # exit codes
PR_SET_PDEATHSIG = 1  # of prctl(2), Linux


def run_command_line(sweep: Sweep, values: dict[str, Any], folder: Path) -> list[str]:
    """The command of the run with these `values` in its `folder`. Raises `UserError`."""
    words = flags_of(sweep.run_settings(values))
    return [sys.executable, str(MAIN), *words, "--run_dir", str(folder), "--resume", "auto"]


def past_run(folder: Path, say: Callable[[str], object] = lambda message: None) -> PastRun | None:
    """What the run in `folder` has left so far; None: nothing yet, or, as `say` is told, nothing
    that can be read."""
    try:
        if files_in(folder / "log", ".log"):
            runs, _ = read_runs([str(folder)])
            return runs[0] if runs else None
    except (OSError, UserError) as problem:
        say(f"warning: left out: {folder} ({reason(problem)})")
    return None


@dataclass
class Job:
    """A trial that is running."""

    trial: Trial
    process: subprocess.Popen
    folder: Path
    started: float
    pruned: bool = False


class Runner:
    """Runs the trials of `study`, up to `jobs` at a time."""

    def __init__(self, study: Study, jobs: int) -> None:
        self.study, self.most = study, jobs
        # Runs that compete for the same cores are much slower.
        threads = min(max(1, available_cores() // jobs), thread_limit())
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.jobs: list[Job] = []
        self.failures = 0

    def run(self) -> None:
        """Runs until no trial is left. Passes a signal on to all runs, which end as after Ctrl-C.

        Raises `RunError` if a trial failed.
        """
        one_line = os_errors(
            f"the sweep in {self.study.folder} failed", "repeat the command to continue", RunError
        )
        with Signals() as signals, signals.deferred(), one_line, machine_errors():
            try:
                told = ""
                while self._start_jobs() or self.study.dying:
                    if self.study.dying not in ("", told):
                        told = self.study.dying
                        print_line(f"waiting for {told}")
                    with signals.waiting():
                        time.sleep(POLL)
                    self.jobs = [job for job in self.jobs if not self._ended(job)]
            except Interrupted as stop:
                self._stop(stop.exit_code - 128)  # the number of the signal
                print_line("stopped; repeat the command to continue")
                raise
            finally:
                self._stop(signal.SIGTERM)
                self.study.release()
        if self.failures:
            raise RunError(f"trials that failed: {self.failures}; see above")

    def _start_jobs(self) -> bool:
        """Starts as many trials as may run. Returns whether any runs."""
        while len(self.jobs) < self.most and (trial := self.study.next_trial()):
            folder = run_dir(self.study.folder, trial.number)
            values = ", ".join(f"{name} {value}" for name, value in trial.params.items())
            print_line(f"trial {trial.number}: {values}")
            try:
                command = run_command_line(self.study.sweep, trial.params, folder)
            except UserError as problem:  # values of a search that contradict each other
                self._fail(trial.number, str(problem))
                continue
            with (folder / OUTPUT).open("ab") as output:
                process = subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches it once, through this process
                    preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                )
            self.jobs.append(Job(trial, process, folder, time.monotonic()))
        return bool(self.jobs)

    def _ended(self, job: Job) -> bool:
        """Reports the new epochs of `job`. Returns whether it has ended, and its result is told."""
        code = job.process.poll()  # before its files are read: they are complete if it has ended
        run, number = past_run(job.folder), job.trial.number
        measured = self.study.trials()[number].intermediate_values
        for row in run.history if run else ():
            if row.epoch and row.val_accuracy is not None and row.epoch not in measured:
                job.trial.report(row.val_accuracy, row.epoch)
        if code is None:
            if not job.pruned and job.trial.should_prune():
                job.pruned = True
                job.process.send_signal(signal.SIGTERM)
            return False
        accuracy = run.validation if run else None
        seconds = clock(time.monotonic() - job.started)
        if code == 0 and accuracy is not None:
            self.study.finish(number, accuracy, TrialState.COMPLETE)
            print_line(f"trial {number}: validation accuracy {accuracy:.2%}, {seconds}")
        elif job.pruned and code in AFTER_SIGTERM:
            self.study.finish(number, None, TrialState.PRUNED)
            print_line(f"trial {number}: below the median, ended after epoch {run.epochs_done}")
        else:
            self._fail(number, f"exit code {code}: {_last_line(job.folder)}")
        return True

    def _fail(self, number: int, why: str) -> None:
        self.failures += 1
        self.study.finish(number, None, TrialState.FAIL)
        print_line(f"trial {number} failed: {why}")

    def _stop(self, signum: int) -> None:
        """Ends all runs, each of which can be resumed, and waits for them."""
        for job in self.jobs:
            with contextlib.suppress(ProcessLookupError):
                job.process.send_signal(signum)
        for job in self.jobs:
            job.process.wait()
        self.jobs = []


def _end_with_parent() -> None:
    """Has the kernel end this process when its parent is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _lines(folder: Path) -> Iterator[str]:
    """The lines that the run in `folder` printed, without empty ones. Raises `OSError`."""
    with (folder / OUTPUT).open(encoding="utf-8", errors="backslashreplace") as file:
        yield from (line.strip() for line in file if line.strip())


def _last_line(folder: Path) -> str:
    return deque(["it printed nothing", *_lines(folder)], maxlen=1)[0]


def _warnings(study: Study) -> list[str]:
    """The warnings of the runs, each once, with the first run that printed it."""
    first: dict[str, str] = {}
    for folder in (run_dir(study.folder, trial.number) for trial in study.trials()):
        try:
            for line in _lines(folder):
                if line.startswith("warning: "):
                    first.setdefault(line, folder.name)
        except FileNotFoundError:  # not started yet
            continue
        except OSError as problem:
            problem = f"warning: {folder / OUTPUT} cannot be read ({reason(problem)})"
            first.setdefault(problem, folder.name)
    return [f"{name}: {line}" for line, name in first.items()]


# --- sweep.py ---


def run_sweep(sweep: Sweep, folder: Path, options: argparse.Namespace) -> None:
    """Runs sweep.py after its flags are read. Raises `UserError`; `RunError` for failures."""
    if options.table and not exists(folder / JOURNAL):
        raise UserError(f"{folder} holds no sweep yet; leave out --table to start it")
    study = Study(sweep, folder, reads_only=options.table)
    try:
        if not options.table:
            study.enqueue()
            data = replace(sweep.data, image_size=32)
            if data.dataset in CIFAR and any(study.left()):
                read_cifar(data, print_line)  # downloads it once, before several runs need it
            Runner(study, options.jobs).run()
    finally:
        if not isinstance(sys.exception(), KeyboardInterrupt):  # after failures too
            _show_results(study, options.html)


def past_runs(folder: Path) -> list[PastRun]:
    """All runs of the sweep in `folder` that have left something."""
    runs = (past_run(path) for path in sorted(folder.glob("trial-*")))
    return [run for run in runs if run]


def _compared_runs(study: Study) -> list[PastRun]:
    """The runs of all trials but failed ones. The name of a run tells if it was ended early."""
    runs = []
    for trial in study.trials():
        run = past_run(run_dir(study.folder, trial.number), print_line)
        if run and trial.state != TrialState.FAIL:
            early = " (ended early)" if trial.state == TrialState.PRUNED else ""
            runs.append(replace(run, name=run.name + early))
    return runs


def _show_results(study: Study, html: str | None) -> None:
    """Prints the table, and writes the page."""
    runs = _compared_runs(study)
    if not runs:
        print_line("there is no run to compare yet")
        return
    comparison = sorted_comparison(runs)
    print(as_text(comparison, shutil.get_terminal_size((120, 0)).columns))
    warnings = _warnings(study)
    for warning in warnings:
        print_line(warning)
    if html is None:
        return
    charts = setting_charts(study.trials(), study.sweep.space)
    page = comparison_page(comparison, warnings, charts, importances(study.study))
    write_named(html, "--html", page)
    print_line(f"written to {html}")
