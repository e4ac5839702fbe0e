"""Finds past runs by their files: run.json, history and report; also a run under way.

Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.history import Row, best_row
from cifarnet.comparing.run_files import RunRecord, read_history, read_record
from cifarnet.core.errors import UserError
from cifarnet.reporting.report_files import RUN_JSON, read_report
from cifarnet.settings import FLAGS
from cifarnet.settings.output import PLOTS


@dataclass(frozen=True)
class PastRun:
    """A run that left files. None: not known."""

    name: str
    source: Path  # the file or folder that tells it from other runs
    history: list[Row]
    record: RunRecord = field(default_factory=RunRecord)
    predictions: Path | None = None
    predicted_by: str = ""  # the model of the predictions in words, unless it is the last one

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by flag; those of an older version lack some."""
        return self.record.settings

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
    def best(self) -> Row | None:
        """The row of the highest held-out accuracy: see `best_row`."""
        return best_row(self.history)

    @property
    def best_on(self) -> str:
        """The images that the best epoch was chosen by: "val", "test", or "" for none."""
        if self.best is None:
            return ""
        return "test" if self.best.val_accuracy is None else "val"

    @property
    def seconds(self) -> float | None:
        """The time of all finished epochs, with their evaluations."""
        return sum(row.seconds for row in self.history) or None

    @property
    def images_per_second(self) -> float | None:
        """The mean over the training time."""
        total = sum(row.train_seconds for row in self.history)
        images = sum(row.images_per_second * row.train_seconds for row in self.history)
        return images / total if total else None


def read_runs(
    names: Sequence[str], snapshots: Mapping[str, PastRun] | None = None
) -> tuple[list[PastRun], list[str]]:
    """The runs that `names` mean, each once, and for each name without a run the reason.

    A name is a log, a history, a run's folder, a result's folder, a folder of logs, or one of
    `snapshots`: their runs by name. Several logs of one resumed run are one run. Raises
    `UserError` for what does not exist or cannot be read.
    """
    runs: dict[Path, PastRun] = {}
    passed_over = []
    for name in names:
        path = Path(name)
        if snapshots and name in snapshots:
            runs.setdefault(snapshots[name].source, snapshots[name])
            continue
        if path.is_file() and path.suffix not in (".log", ".csv"):
            # a pattern such as results/* matches a README too
            passed_over.append(f"{name} is not a log, history or snapshot")
            continue
        matches, without = _runs_at(path)
        runs |= {run.source: run for run in matches if run.source not in runs}
        if without:
            passed_over.append(f"{name} holds {without} logs without a {RUN_JSON} beside them")
    return _with_unique_names(_newest_parts(runs.values())), passed_over


def _runs_at(path: Path) -> tuple[list[PastRun], int]:
    """The runs that `path` names, and how many logs in it have no run.json."""
    if path.is_dir():
        return _runs_in(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a run's log, history, folder or snapshot")
    if path.name in ("training.log", "history.csv") and (path.parent / "run.json").is_file():
        return [_from_result(path.parent)], 0
    record = path.with_suffix(RUN_JSON)
    if path.suffix == ".log" and not record.is_file():
        raise UserError(
            f"{path} has no {record.name} beside it, which holds the settings of the run; name "
            f"its history (.csv) or a snapshot"
        )
    return [_from_log(path.with_suffix(".log"), path.stem)], 0


def _runs_in(folder: Path) -> tuple[list[PastRun], int]:
    """The runs in `folder`, and how many logs in it have no run.json."""
    if any((folder / name).is_file() for name in ("run.json", "history.csv", "metrics.json")):
        return [_from_result(folder)], 0
    of_run_dir = sorted(folder.glob("log/*.log"))
    logs = of_run_dir or sorted(folder.glob("*.log"))
    if not logs:
        raise UserError(
            f"{folder} holds no run; name a folder with log/*.log, *.log, run.json, history.csv "
            f"or metrics.json"
        )
    recorded = [log for log in logs if log.with_suffix(RUN_JSON).is_file()]
    if of_run_dir and recorded:  # named by their dates: the last one is of the newest run
        return [_from_log(recorded[-1], folder.resolve().name)], 0
    return [_from_log(log, log.stem) for log in recorded], len(logs) - len(recorded)


def _from_result(folder: Path) -> PastRun:
    """The run whose files lie in `folder` under names without a date, as in results/."""
    folder = folder.resolve()
    return _read(folder.name, folder, folder / "run.json", folder / "history.csv", [folder])


def _from_log(log: Path, name: str) -> PastRun:
    """The run with the log file `log`, whose name is `name` or holds its date."""
    log = log.resolve()
    reports = [log.parents[1] / PLOTS] if log.parent.name == "log" else []
    name = name.removeprefix("training_complete_")
    return _read(name, log, log.with_suffix(RUN_JSON), log.with_suffix(".csv"), reports)


def _read(
    name: str, source: Path, record_path: Path, history_path: Path, reports: list[Path]
) -> PastRun:
    """The run of the files that exist. `reports` are folders that may hold its metrics.json."""
    record = read_record(record_path) if record_path.is_file() else RunRecord()
    history = read_history(history_path) if history_path.is_file() else []
    run = PastRun(name, source, history, record)
    if record.plot_dir:
        reports = [*reports, Path(record.plot_dir)]
    for folder in reports:
        if (folder / "metrics.json").is_file():
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
    """`run` with its `predictions`, and with what `report` adds to its record."""
    last = report.get("last") or report
    record, epoch = run.record, report["epoch"]
    if record.top1 is None and last["epoch"] == (run.epochs_done or last["epoch"]):
        record = replace(record, top1=float(last["top1"]))
    if record.run_id is None:
        settings = report.get("run", {}).get("settings", {})
        record = replace(
            record,
            settings=record.settings or {n: v for n, v in settings.items() if n in FLAGS},
            dataset=record.dataset or report["dataset"],
        )
    return replace(
        run,
        record=record,
        predictions=predictions if predictions.is_file() else None,
        predicted_by="" if epoch == last["epoch"] == run.epochs_done else f"epoch {epoch}",
    )


def _newest_parts(runs: Iterable[PastRun]) -> list[PastRun]:
    """`runs` without those that another one continues: its history holds theirs."""
    every = list(runs)
    return [run for run in every if not any(_continues(later, run) for later in every)]


def _continues(later: PastRun, run: PastRun) -> bool:
    """Whether `later` is the same run, resumed in the same folder or after the epochs of `run`."""
    return (
        run.record.run_id is not None
        and later.record.run_id == run.record.run_id
        and (later.record.started or "") > (run.record.started or "")
        and (
            later.source.parent == run.source.parent
            or later.history[: len(run.history)] == run.history
        )
    )


def _with_unique_names(runs: list[PastRun]) -> list[PastRun]:
    """`runs`; where several have one name, the folders that tell them apart come before it."""
    namesakes: dict[str, list[PastRun]] = {}
    for run in runs:
        namesakes.setdefault(run.name, []).append(run)
    names = []
    for run in runs:
        folders = [other.source.parent.parts for other in namesakes[run.name]]
        common = set(folders[0]).intersection(*folders)
        distinct = [part for part in run.source.parent.parts if part not in common]
        names.append("/".join([*distinct, run.name]) if len(folders) > 1 else run.name)
    return [
        replace(run, name=name if names.count(name) == 1 else str(run.source))
        for run, name in zip(runs, names, strict=True)
    ]
