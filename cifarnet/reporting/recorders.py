"""Recorders: what a run writes at its start, after each epoch and at its end.

If one fails, for example on a full disk, the others still work. The failure is logged and the
recorder tries again. The run ends with exit code 1 if its last try failed.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.folder import prune
from cifarnet.checkpoints.history import COLUMNS, Progress, Row
from cifarnet.checkpoints.paths import BEST, LAST, numbered
from cifarnet.checkpoints.snapshots import Snapshot, pack, write_snapshot
from cifarnet.core.errors import RunError, reason
from cifarnet.core.files import write_text
from cifarnet.core.log import RunLog, clock
from cifarnet.core.text import csv_text
from cifarnet.reporting.metrics import Report
from cifarnet.settings import Settings


class Recorder:
    """The base of all recorders. Each method may raise any error: `Recorders` logs it."""

    failure = "a file could not be written"  # in words, for the end of the run

    def start(self, progress: Progress) -> None:
        """Called before the first epoch of this process; a resumed run brings earlier rows."""

    def row(self, progress: Progress) -> None:
        """Called after each epoch; its row is the last one of the history."""

    def end(self, progress: Progress) -> None:
        """Called when no epoch follows; a second time if the run is stopped later."""

    def report(self, report: Report) -> None:
        """Called once all epochs are done and the network is evaluated."""

    def close(self, status: str, figures: dict[str, Any] | None) -> None:
        """Called last: the run is "finished", "stopped" or "failed".

        `figures` are those of the last and the best model, as in metrics.json; None: not evaluated.
        """


class Recorders:
    """Calls each recorder in turn, on the first rank; the other ranks wait for it.

    The methods are those of `Recorder`. Call those after `row` on the first rank only.
    """

    def __init__(
        self,
        recorders: Sequence[Recorder],
        log: RunLog,
        first_only: Callable[[Callable[[], None]], None],
        folders: Iterable[Path] = (),
    ) -> None:
        """`first_only(work)` does `work` on the first rank, while the others wait. `folders` are
        made again if they were moved away."""
        self.recorders, self.log, self.first_only = recorders, log, first_only
        self.failures: dict[Recorder | None, str] = {}  # those whose last try failed
        self.folders = folders

    def start(self, progress: Progress) -> None:
        self.first_only(lambda: self._tell("start", progress))

    def row(self, progress: Progress) -> None:
        self.first_only(lambda: self._tell("row", progress))

    def end(self, progress: Progress) -> None:
        self._tell("end", progress)

    def report(self, report: Report) -> None:
        self._tell("report", report)

    def close(self, status: str, figures: dict[str, Any] | None = None) -> None:
        self._tell("close", status, figures)

    def _tell(self, event: str, *news: Any) -> None:
        for recorder in self.recorders:
            try:
                for folder in self.folders:
                    with contextlib.suppress(OSError):  # else the recorder that needs it fails
                        folder.mkdir(parents=True, exist_ok=True)
                getattr(recorder, event)(*news)
                if event in ("start", "row", "end"):  # other events do not write pending data
                    self.failures.pop(recorder, None)
            except Exception as problem:  # matplotlib passes on whatever libraries raise
                self.failures[recorder] = f"{recorder.failure}; see the log"
                again = "; it will be tried again" if event in ("start", "row") else ""
                self.log.line(f"warning: {recorder.failure} ({reason(problem)}){again}")

    def fail(self, problem: RunError) -> None:
        """Logs a failure that does not end the run, and keeps it for `check`."""
        self.failures[None] = str(problem)
        self.log.line(f"warning: {problem}")

    def check(self) -> None:
        """Raises `RunError` if the last try of a recorder failed."""
        if self.failures:
            raise RunError("; ".join(self.failures.values()))


class Snapshots(Recorder):
    """Writes last.pth after each epoch, numbered snapshots, and best_model.pth.

    The best comes first: after a crash in between, the resumed run repeats the epoch. What
    could not be written is kept as it was, and tried again.
    """

    def __init__(
        self, directory: Path, settings: Settings, snapshot: Callable[[], Snapshot]
    ) -> None:
        """`snapshot()` is the run as it is now."""
        self.directory, self.settings, self.snapshot = directory, settings, snapshot
        self.unsaved: dict[Path, bytes] = {}
        self.missing = False  # the last epoch is in no file, and not in `unsaved`
        self.trained = False  # without an epoch, the folder may be that of another run

    @property
    def failure(self) -> str:
        """Names the files that are not written yet; their former content is kept."""
        if self.missing:
            return f"the snapshot of the last epoch could not be made for {self.directory}"
        if not self.unsaved:
            return f"an old snapshot could not be removed from {self.directory}"
        names = ", ".join(sorted(path.name for path in self.unsaved))
        return f"{names} could not be written to {self.directory}"

    def row(self, progress: Progress) -> None:
        self.trained = self.missing = True
        content, freq = pack(self.snapshot()), self.settings.output.snapshot_freq
        self.missing = False
        if self.settings.keeps_best and progress.best_epoch == progress.epoch:
            self.unsaved[self.directory / BEST] = content
        if freq and progress.epoch % freq == 0:
            self.unsaved[numbered(self.directory, progress.epoch)] = content
        self.unsaved[self.directory / LAST] = content
        self._write()

    def end(self, progress: Progress) -> None:
        self._write()

    def _write(self) -> None:
        problem = None
        for path in sorted(self.unsaved, key=lambda path: path.name == LAST):  # False, then True
            try:
                write_snapshot(self.unsaved[path], path)
                del self.unsaved[path]
            except OSError as failed:
                problem = failed
        if self.trained:
            prune(self.directory, self.settings.output.keep_snapshots)
        if problem:
            raise problem
        if self.missing:  # the weights may have moved on since
            raise RunError("the files hold earlier epochs")


class HistoryCsv(Recorder):
    """Keeps the history in a CSV file beside the log: a row an epoch, blank where not measured.

    Each time the whole file is written, so it is complete even if the last one was moved away.
    """

    failure = "the history could not be written"

    def __init__(self, log: RunLog) -> None:
        self.log = log

    def row(self, progress: Progress) -> None:
        if progress.history:
            rows = [COLUMNS, *map(dataclasses.astuple, progress.history)]
            write_text(self.log.path.with_suffix(".csv"), csv_text(rows))

    start = end = row


class LogLine(Recorder):
    """Writes a line an epoch to the log, with the time that is left."""

    def __init__(
        self,
        log: RunLog,
        settings: Settings,
        cost: Callable[[int], float],
        first_step: Callable[[], float],
    ) -> None:
        """`cost(epoch)` is what an epoch costs, in any unit: larger images take longer.
        `first_step()` is how long the first step took, in seconds."""
        self.log, self.settings, self.cost, self.first_step = log, settings, cost, first_step
        self.started, self.epochs_before = 0.0, 0
        self.advised: set[str] = set()  # what the log has advised on: once a run

    def start(self, progress: Progress) -> None:
        self.started, self.epochs_before = time.perf_counter(), progress.epoch
        if progress.history and not progress.epoch:
            parts = ["epoch 0, the weights of --init", *self._held_out(progress.history[0])]
            self.log.line(" | ".join(parts))

    def row(self, progress: Progress) -> None:
        row = progress.history[-1]
        if self.settings.precision.compile and row.epoch == self.epochs_before + 1:
            self.log.line(f"compiled in the first step, which took {self.first_step():.0f} s")
        self.log.line(self._line(row, progress))
        waits = (
            row.data_wait > 0.1 and self.settings.augmentation.augment_engine == "albumentations"
        )
        if waits:
            batched = self.settings.augmentation.auto_augment == "none"
            other = ", or use --augment_engine batched" if batched else ""
            self._advise(
                "waiting",
                f"{row.data_wait:.0%} of the training time was spent waiting for data: raise "
                f"--num_workers if cores are idle{other}",
            )
        limit = self.settings.training.max_grad_norm
        if row.clipped == 1 and (self.settings.training.init or row.grad_norm > 2 * limit):
            self._advise(
                "clipping",
                f"every step of epoch {row.epoch} was clipped: the mean gradient norm is "
                f"{row.grad_norm:.2f}, above --max_grad_norm {limit:g}; raise it above that norm, "
                f"and lower --lr if the accuracy falls",
            )

    def _advise(self, subject: str, text: str) -> None:
        """Logs `text` unless the log has advised on `subject` before."""
        if subject not in self.advised:
            self.advised.add(subject)
            self.log.line(text)

    def _line(self, row: Row, progress: Progress) -> str:
        parts = [
            f"epoch {row.epoch}/{self.settings.training.epochs}",
            f"lr {row.lr:.3g}",
            f"train {row.train_loss:.4f} {row.train_accuracy:.2%}",
        ]
        parts += [
            *self._held_out(row),
            f"{row.images_per_second:.0f} img/s",
            f"data wait {row.data_wait:.1%}",
            f"grad norm {row.grad_norm:.2f}, {row.clipped:.0%} clipped",
        ]
        if row.skipped_steps:
            parts.append(f"{row.skipped_steps} steps skipped by the fp16 scaler")
        if best := progress.best:
            parts.append(f"best {best.held_out_accuracy:.2%} ({best.epoch})")
        return " | ".join([*parts, f"left {clock(self._seconds_left(row.epoch))}"])

    def _held_out(self, row: Row) -> list[str]:
        """The figures of the evaluation, and the time of the epoch."""
        parts = []
        if row.val_loss is not None:
            parts.append(f"val {row.val_loss:.4f} {row.val_accuracy:.2%}")
        if row.test_loss is not None:
            parts.append(f"test {row.test_loss:.4f} {row.test_accuracy:.2%}")
        if row.ema_accuracy is not None:
            parts.append(f"raw {row.raw_accuracy:.2%}, averaged {row.ema_accuracy:.2%}")
        return [*parts, f"{row.seconds:.1f} s"]

    def _seconds_left(self, epoch: int) -> float:
        done = sum(map(self.cost, range(self.epochs_before + 1, epoch + 1)))
        left = sum(map(self.cost, range(epoch + 1, self.settings.training.epochs + 1)))
        return (time.perf_counter() - self.started) * left / done


class Curves(Recorder):
    """Draws a figure of the training every `--plot_freq` epochs and at the end."""

    def __init__(self, settings: Settings, path: Path, draw: Callable[[Progress], None]) -> None:
        """`draw(progress)` draws it and writes the file `path`."""
        self.settings, self.draw = settings, draw
        self.failure = f"{path} could not be drawn"

    def row(self, progress: Progress) -> None:
        freq = self.settings.evaluation.plot_freq
        if freq and progress.epoch % freq == 0 and progress.epoch < self.settings.training.epochs:
            self.draw(progress)

    def end(self, progress: Progress) -> None:
        if progress.epoch:
            self.draw(progress)
