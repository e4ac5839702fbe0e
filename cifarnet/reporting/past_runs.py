"""Reads what runs left behind: logs, histories, reports and snapshots; also of a run under way.

Nothing here needs torch, unless a snapshot is read.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cifarnet.core.errors import UserError
from cifarnet.reporting.log_text import COLUMNS, EpochRow, facts_in, history_in, number, settings_in
from cifarnet.reporting.report_files import read_report
from cifarnet.settings import FLAGS
from cifarnet.settings.flags import numbers_in
from cifarnet.settings.output import PLOTS
from cifarnet.settings.parser import read_recipe

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # not trained


@dataclass(frozen=True)
class PastRun:
    """What is known of one run. Shares are in [0, 1]; None: not known."""

    name: str
    source: Path  # the file, or the log without its suffix, that tells it from other runs
    settings: dict[str, Any]  # by flag; an older version's lack some
    history: list[EpochRow]
    dataset: str | None
    machine: str | None
    parameters: int | None
    top1: float | None  # on the test images, after the last epoch
    predictions: Path | None
    predicted_by: str = ""  # the model of the predictions in words, unless it is the last one

    @property
    def epochs_done(self) -> int:
        """The number of finished epochs."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def best(self) -> tuple[float, int, str] | None:
        """The highest accuracy, its epoch, and on which images: "val", where there are any, or
        "test". Of equal accuracies the first one is the best."""
        for part in ("val", "test"):
            measured = [row for row in self.history if row[f"{part}_accuracy"] is not None]
            if measured:
                best = max(measured, key=lambda row: row[f"{part}_accuracy"])
                return best[f"{part}_accuracy"], int(best["epoch"]), part
        return None

    @property
    def seconds(self) -> float | None:
        """The time of all finished epochs, with their evaluations."""
        return sum(row["seconds"] or 0 for row in self.history) or None

    @property
    def images_per_second(self) -> float | None:
        """The mean over the training time."""
        times = [
            (row["images_per_second"], row["train_seconds"] or row["seconds"])
            for row in self.history
        ]
        times = [(rate, time) for rate, time in times if rate is not None and time]
        total = sum(time for _, time in times)
        return sum(rate * time for rate, time in times) / total if total else None


@dataclass(frozen=True)
class Files:
    """The files of one run."""

    name: str
    source: Path
    log: Path | None = None
    history: Path | None = None
    report: Path | None = None  # a folder that holds metrics.json
    recipe: Path | None = None
    only_of_log: bool = False  # the report may be of another run: it must name the log


def read_runs(names: Sequence[str]) -> tuple[list[PastRun], list[str]]:
    """The runs that `names` mean, each once, and the names that mean none.

    A name is a log, a history, a snapshot, a run's folder, a result's folder, or a folder of logs.
    Raises `UserError` for what is not there or cannot be read.
    """
    runs: dict[Path, PastRun] = {}
    passed_over = []
    for name in names:
        path = Path(name)
        if path.is_file() and path.suffix not in (".log", ".csv", ".pth"):
            passed_over.append(name)  # a pattern such as results/* finds a README too
            continue
        for run in _runs_at(path):
            runs.setdefault(run.source, run)
    return _with_own_names(list(runs.values())), passed_over


def _runs_at(path: Path) -> Iterator[PastRun]:
    if path.suffix == ".pth":
        yield _of_snapshot(path)
        return
    for files in _files_at(path):
        yield _read(files)


def _files_at(path: Path) -> list[Files]:
    """The files of the runs that `path` names. Raises `UserError` where there are none."""
    if path.is_file():
        return [_beside_log(path.with_suffix(""), path.stem)]
    if not path.is_dir():
        raise UserError(f"{path} is not there; name a run's log, history, folder or snapshot")
    flat = {name: path / name for name in ("training.log", "history.csv", "metrics.json")}
    there = {name: file for name, file in flat.items() if file.is_file()}
    name = path.resolve().name
    if there:
        recipe = path / "recipe.toml"
        result = Files(
            name,
            path.resolve(),
            log=there.get("training.log"),
            history=there.get("history.csv"),
            report=path if "metrics.json" in there else None,
            recipe=recipe if recipe.is_file() else None,
        )
        return [result]
    logs = sorted(path.glob("log/*.log"))
    if logs:  # named by their dates: the last one is of the newest run, or of its last part
        return [_beside_log(logs[-1].with_suffix(""), name)]
    logs = sorted(path.glob("*.log"))
    if logs:
        return [_beside_log(log.with_suffix(""), log.stem) for log in logs]
    raise UserError(
        f"{path} holds no run; name a folder with log/*.log, *.log, training.log, history.csv or "
        f"metrics.json"
    )


def _beside_log(stem: Path, name: str) -> Files:
    """The files of the run whose log is `stem` with the suffix .log."""
    log, history = Path(f"{stem}.log"), Path(f"{stem}.csv")
    folder = stem.resolve().parent
    report = folder.parent / PLOTS
    has_report = folder.name == "log" and (report / "metrics.json").is_file()
    return Files(
        name.removeprefix("training_complete_"),
        stem.resolve(),
        log=log if log.is_file() else None,
        history=history if history.is_file() else None,
        report=report if has_report else None,
        only_of_log=True,
    )


def _read(files: Files) -> PastRun:
    log = _text(files.log) if files.log else ""
    history = _read_history(files.history) if files.history else history_in(log)
    facts = facts_in(log)
    report = _own_report(files, history, log)
    settings = report.get("run", {}).get("settings") or settings_in(log)
    if not settings and files.recipe:
        settings = read_recipe(files.recipe)
    top1 = _last_accuracy(history)
    top1 = number(facts["top1"]) if top1 is None else top1
    parameters = facts["parameters"]
    predictions = files.report / "predictions.csv" if report else None
    of_last = report.get("epoch") == (report.get("last") or report).get("epoch")
    return PastRun(
        name=files.name,
        source=files.source,
        settings=_plain(settings),
        history=history,
        dataset=report.get("dataset") or facts["dataset"],
        machine=facts["machine"],
        parameters=int(parameters.replace(",", "")) if parameters else None,
        top1=(report.get("last") or report).get("top1", top1),
        predictions=predictions if predictions and predictions.is_file() else None,
        predicted_by="" if of_last else f"epoch {report.get('epoch')}",
    )


def _own_report(files: Files, history: list[EpochRow], log: str) -> dict[str, Any]:
    """The report of the run with the text `log`; empty if there is none, or one of another run."""
    if not files.report:
        return {}
    report = read_report(files.report / "metrics.json")
    if not files.only_of_log:
        return report
    named = report.get("run", {}).get("log")
    if named is None:  # evaluate.py does not know it
        done = history[-1]["epoch"] if history else 0
        same = report.get("epoch") == done and _may_be_of(log, report)
    else:
        same = named == f"{files.source.name}.log"
    return report if same else {}


def _last_accuracy(history: list[EpochRow]) -> float | None:
    """The test accuracy that was measured last."""
    measured = [row["test_accuracy"] for row in history if row["test_accuracy"] is not None]
    return measured[-1] if measured else None


def _may_be_of(log: str, report: dict[str, Any]) -> bool:
    """Whether `report`, which names no log, may be of the run of `log`.

    evaluate.py also writes reports of other runs, other images or views, and exported networks.
    """
    run = report.get("run", {})
    known, logged = _plain(run.get("settings", {})), _plain(settings_in(log))
    return (
        not (run and run.get("id") is None)  # of no snapshot
        and report.get("tta", "none") == "none"
        and facts_in(log)["images"] in (None, str(report.get("images")))
        and all(
            known[name] == logged[name]
            for name in known.keys() & logged.keys()
            if FLAGS[name].metadata["on_resume"] == "same"
        )
    )


def _of_snapshot(path: Path) -> PastRun:
    from cifarnet.checkpoints.snapshots import load  # torch takes seconds to import

    state = load(path)
    history = [{name: getattr(row, name) for name in COLUMNS} for row in state.history]
    trained = (t for name, t in state.model.items() if not name.endswith(STATISTICS))
    return PastRun(
        name=path.stem,
        source=path.resolve(),
        settings=_plain(state.config),
        history=history,
        dataset=state.dataset,
        machine=None,
        parameters=sum(tensor.numel() for tensor in trained),
        top1=_last_accuracy(history),
        predictions=None,
    )


def _with_own_names(runs: list[PastRun]) -> list[PastRun]:
    """`runs`; where several have one name, the folders that tell them apart come before it."""
    alike: dict[str, list[PastRun]] = {}
    for run in runs:
        alike.setdefault(run.name, []).append(run)
    named = []
    for run in runs:
        folders = [other.source.parent.parts for other in alike[run.name]]
        common = set(folders[0]).intersection(*folders)
        own = [part for part in run.source.parent.parts if part not in common]
        named.append("/".join([*own, run.name]) if len(folders) > 1 else run.name)
    return [
        replace(run, name=name if named.count(name) == 1 else str(run.source))
        for run, name in zip(runs, named, strict=True)
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem.strerror}); name another file") from None


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of the CSV file `path`, which must have `columns`. Raises `UserError`.

    A last row that is not whole, because it is being written, is left out.
    """
    try:
        reader = csv.DictReader(_text(path).splitlines())
        rows = list(reader)
    except csv.Error as problem:
        raise UserError(f"{path} is not a CSV file ({problem}); name another one") from None
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            f"{path} lacks the columns {', '.join(missing)}; name a file that a run wrote"
        )
    if rows and None in rows[-1].values():
        rows.pop()
    return rows


def _read_history(path: Path) -> list[EpochRow]:
    rows = [{name: number(row[name]) for name in COLUMNS} for row in read_table(path, COLUMNS)]
    if any(row["epoch"] is None for row in rows):
        raise UserError(f"{path}: an epoch is no number; name a file that a run wrote")
    return rows


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The known ones of `settings`; a list of numbers has one spelling."""
    known = {name: value for name, value in settings.items() if name in FLAGS}
    for name, value in known.items():
        if FLAGS[name].metadata["numbers"]:
            try:
                known[name] = ",".join(f"{rate:g}" for rate in numbers_in(str(value)))
            except ValueError:
                continue
    return known
