"""Finds past runs by their files: run.json, history, report, snapshot; also one that is running."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.history import Progress, Row
from cifarnet.comparing.run_files import RunFacts, read_history, read_record
from cifarnet.core.errors import UserError, os_errors
from cifarnet.core.files import exists, files_in
from cifarnet.core.late import LateModule
from cifarnet.reporting.report_files import RUN_JSON, read_report
from cifarnet.settings import FLAGS
from cifarnet.settings.output import PLOTS

snapshots = LateModule("cifarnet.checkpoints.snapshots")  # imports torch
UNKNOWN = "?"


@dataclass(frozen=True)
class PastRun:
    """A run that left files. None: not known."""

    name: str
    source: Path  # the file or folder that identifies the run
    history: list[Row]
    record: RunFacts = field(default_factory=RunFacts)
    predictions: Path | None = None
    predicted_by: str = ""  # the model of the predictions in words, unless it is the last one

    @property
    def epochs_done(self) -> int:
        """The number of finished epochs."""
        return self.history[-1].epoch if self.history else self.record.epochs_done

    @property
    def top1(self) -> float | None:
        """Top-1 on the test images, in [0, 1]: of the last model, or the last one measured."""
        measured = [row.test_accuracy for row in self.history if row.test_accuracy is not None]
        return self.record.top1 if self.record.top1 is not None else (measured or [None])[-1]

    @property
    def validation(self) -> float | None:
        """The last accuracy on validation images, in [0, 1]."""
        measured = [row.val_accuracy for row in self.history if row.val_accuracy is not None]
        return measured[-1] if measured else None

    @property
    def best(self) -> Row | None:
        """The row of the highest held-out accuracy among those that are comparable."""
        return Progress(history=self.history, comparable_after=self.record.comparable_after).best

    @property
    def best_on(self) -> str:
        """The images that the best epoch was chosen by: "val", "test", or "" for none."""
        if self.best is None:
            return ""
        return "test" if self.best.val_accuracy is None else "val"

    @property
    def epochs_in_words(self) -> str:
        """How many epochs are done, of how many."""
        if self.record.run_id is None and not self.history:
            return "evaluated only"
        return f"{self.epochs_done} of {self.record.settings.get('epochs', UNKNOWN)}"

    @property
    def seconds(self) -> float | None:
        """The time of all finished epochs, with their evaluations."""
        return sum(row.seconds for row in self.history) or None

    @property
    def images_per_second(self) -> float | None:
        """The mean over the training time."""
        total = sum(row.train_seconds for row in self.history)
        images = sum((row.images_per_second or 0) * row.train_seconds for row in self.history)
        return images / total if total else None


def read_runs(names: Sequence[str]) -> tuple[list[PastRun], list[str]]:
    """The runs that `names` mean, each once, and the reasons why names were skipped.

    A name is a log, a history, a snapshot, a run's folder, a result's folder, or a folder of logs.
    The logs of a resumed run in one folder are one run: the latest counts. So is a run that was
    resumed in another folder. Raises `UserError` for what does not exist or cannot be read.
    """
    runs: dict[tuple[Path, str | None], PastRun] = {}
    messages = []
    for path in map(Path, names):
        with os_errors(f"{path} cannot be read", "name another one"):
            matches, notes = _runs_of(path)
        messages += notes
        for run in matches:
            run_id = run.record.run_id
            folder = run.source if run.source.is_dir() else run.source.parent
            key = (folder, run_id) if run_id else (run.source, None)
            runs[key] = _later(runs[key], run) if key in runs else run
    last = [run for run in runs.values() if not any(_continues(o, run) for o in runs.values())]
    counts = Counter(run.name for run in last)
    unique = [
        run if counts[run.name] == 1 else replace(run, name=os.path.relpath(run.source))
        for run in last
    ]
    return unique, messages


def _continues(later: PastRun, run: PastRun) -> bool:
    """Whether `later` resumed `run`: it begins with all its epochs."""
    done = len(run.history)
    return (
        run.record.run_id is not None
        and run.record.run_id == later.record.run_id
        and (done, _started(run)) < (len(later.history), _started(later))
        and later.history[:done] == run.history
    )


def _later(one: PastRun, two: PastRun) -> PastRun:
    """The run that continues the other one, else the one that started later."""
    if _continues(one, two) or _continues(two, one):
        return one if _continues(one, two) else two
    return max(one, two, key=lambda run: (_started(run), run.source))


def _started(run: PastRun) -> float:
    """When `run` started, in seconds; 0 where that is not known. The names of logs have the local
    time, which depends on time zone and daylight saving."""
    try:
        return datetime.fromisoformat(run.record.started).timestamp()
    except (TypeError, ValueError):
        return 0.0


def _runs_of(path: Path) -> tuple[list[PastRun], list[str]]:
    """The runs that `path` means, and what to say of it."""
    if path.suffix == ".pth":
        return [_run_of_snapshot(path)], []
    notes = []
    if path.is_dir():
        matches, without = _runs_in(path)
        if without:
            notes.append(
                f"skipped: {path} holds logs with no {RUN_JSON} and no .csv beside them: {without}"
            )
    elif path.is_file() and path.suffix not in (".log", ".csv"):
        # a pattern such as results/* matches a README too
        return [], [f"skipped: {path} is not a log, history or snapshot"]
    else:
        matches = [_run_of_file(path)]
    logs = [run.source for run in matches if run.source.suffix == ".log" and path.suffix != ".csv"]
    notes += [
        f"{log.name} has no {RUN_JSON} beside it: only its history is shown, without settings"
        for log in logs
        if not exists(log.with_suffix(RUN_JSON))
    ]
    return matches, notes


def _run_of_snapshot(path: Path) -> PastRun:
    """The run up to the snapshot `path`."""
    snapshot = snapshots.read_snapshot(path)
    model = snapshot.model
    settings, dataset = snapshot.settings.flags, model.origin.dataset
    record = RunFacts(
        settings=settings,
        dataset=dataset,
        parameters=model.parameters,
        comparable_after=snapshot.state.comparable_after,
    )
    return PastRun(path.stem, path.resolve(), snapshot.state.history, record)


def _run_of_file(path: Path) -> PastRun:
    """The run with the log or history `path`."""
    if not exists(path):
        raise UserError(f"{path} does not exist; name a run's log, history, folder or snapshot")
    if path.suffix == ".log" and not _is_recorded(path):
        raise UserError(
            f"{path} has neither {path.stem}{RUN_JSON} nor {path.stem}.csv beside it, which hold "
            f"the figures of the run; name a snapshot"
        )
    return _from_log(path, path.stem)


def _is_recorded(log: Path) -> bool:
    """Whether settings or history lie beside `log`."""
    return exists(log.with_suffix(RUN_JSON)) or exists(log.with_suffix(".csv"))


def _runs_in(folder: Path) -> tuple[list[PastRun], int]:
    """The runs in `folder`, and how many logs in it have neither run.json nor history."""
    if any(exists(folder / name) for name in ("run.json", "history.csv", "metrics.json")):
        folder = folder.resolve()  # its files have names without a date, as in results/
        paths = folder / "run.json", folder / "history.csv"
        return [_read(folder.name, folder, *paths, [folder])], 0
    of_run_dir = files_in(folder / "log", ".log")
    logs = of_run_dir or files_in(folder, ".log")
    if not logs:
        raise UserError(
            f"{folder} holds no run; name a folder with log/*.log, *.log, run.json, history.csv "
            f"or metrics.json"
        )
    recorded = [log for log in logs if _is_recorded(log)]
    if of_run_dir and recorded:
        return [reduce(_later, (_from_log(log, folder.resolve().name) for log in recorded))], 0
    return [_from_log(log, log.stem) for log in recorded], len(logs) - len(recorded)


def _from_log(log: Path, name: str) -> PastRun:
    """The run named `name` with the log `log`, or with the history beside it."""
    log = log.resolve().with_suffix(".log")
    reports = [log.parents[1] / PLOTS] if log.parent.name == "log" else []
    name = name.removeprefix("training_complete_")
    return _read(name, log, log.with_suffix(RUN_JSON), log.with_suffix(".csv"), reports)


def _read(
    name: str, source: Path, record_path: Path, history_path: Path, reports: list[Path]
) -> PastRun:
    """The run of the files that exist. `reports` are folders that may hold its metrics.json."""
    record = read_record(record_path) if exists(record_path) else RunFacts()
    history = read_history(history_path) if exists(history_path) else []
    run = PastRun(name, source, history, record)
    if record.plot_dir:
        reports = [*reports, Path(record.plot_dir)]
    for folder in reports:
        if exists(folder / "metrics.json"):
            report = read_report(folder / "metrics.json")
            if folder == source or _is_of(run, report):
                return _with_report(run, report, folder / "predictions.csv")
    return run


def _is_of(run: PastRun, report: dict[str, Any]) -> bool:
    """Whether `report` is of the network of `run` alone, on the images that the run tested.

    evaluate.py also writes reports on other images, views or weights into the folder of a run.
    """
    record = run.record
    return (
        record.run_id is not None
        and report.get("run", {}).get("id") == record.run_id
        and report.get("tta", "none") == "none"
        and report.get("weights") == record.settings.get("evaluate")
        and (report["dataset"], report.get("images")) == (record.dataset, record.test_images)
    )


def _with_report(run: PastRun, report: dict[str, Any], predictions: Path) -> PastRun:
    """`run` with its `predictions`, and with what `report` adds to its record: figures of the last
    epoch only."""
    record, last = run.record, report.get("last") or report
    is_end = last["epoch"] == (run.epochs_done or last["epoch"])
    is_last = report["epoch"] == last["epoch"]  # else the report is on the best model
    tested = report["dataset"], report.get("images")
    other_images = record.dataset is not None and tested != (record.dataset, record.test_images)
    changes: dict[str, Any] = {}
    if is_end:  # all figures are those of the report
        changes |= {"top1": float(last["top1"]), "tta": report.get("tta", "none")}
        changes["weights"] = report.get("weights")
        if other_images:
            changes |= {"tested_on": tested[0], "test_images": tested[1]}
    if is_end and is_last and report.get("corruptions"):
        changes["corrupted"] = report["corruptions"]["mean_accuracy"]
    if is_end:
        figures = report if is_last else last
        names = ("calibration_error", "calibration_error_before")
        changes |= {name: v for name in names if isinstance(v := figures.get(name), float)}
    if record.run_id is None:
        settings = report.get("run", {}).get("settings", {})
        changes |= {
            "settings": record.settings or {n: v for n, v in settings.items() if n in FLAGS},
            "dataset": record.dataset or tested[0],
            "test_images": tested[1],
            "epochs_done": last["epoch"] if isinstance(last["epoch"], int) else 0,
        }
    record = replace(record, **changes)
    run = replace(run, record=record, predictions=predictions if exists(predictions) else None)
    if is_last and last["epoch"] == run.epochs_done:
        return run
    return replace(run, predicted_by=f"epoch {report['epoch']}")
