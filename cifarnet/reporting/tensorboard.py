"""What a run writes for TensorBoard: its history, two pictures and the final figures."""

import contextlib
import dataclasses
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cifarnet.checkpoints.history import Progress, Row
from cifarnet.core.log import RunLog
from cifarnet.reporting.metrics import Report
from cifarnet.reporting.recorders import Recorder
from cifarnet.settings import OF_THE_RESULT, Settings

if TYPE_CHECKING:  # an optional package
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Recorder):
    """Writes events into a folder beside the log, which has its name; a step is an epoch.

    A resumed run continues in its former folder and writes its whole history again. Its earlier
    files get names that TensorBoard does not read. So each curve is one line, whatever epoch the
    run continues from. The same happens after a full disk.
    """

    failure = "the events for TensorBoard could not be written"

    def __init__(
        self,
        log: RunLog,
        settings: Settings,
        augmented: Callable[[], np.ndarray],
        confusion: Callable[[Report], np.ndarray],
    ) -> None:
        """`augmented()` draws augmented training images, `confusion(report)` a confusion matrix;
        both uint8 [H,W,3]."""
        self.log, self.settings = log, settings
        self.augmented, self.confusion = augmented, confusion
        self.writer: SummaryWriter | None = None
        self.progress = Progress()
        self.rows = 0  # that are written
        self.final: Report | None = None

    def start(self, progress: Progress) -> None:
        self.progress = progress
        self._write()

    row = end = start

    def report(self, report: Report) -> None:
        self.final = report
        self._write()
        self._close()

    def _write(self) -> None:
        """Writes the rows that are not written yet, and the final report."""
        with _quiet_threads():
            try:
                if self.writer is None:
                    self.writer = self._open()
                for row, ended in _with_times(self.progress.history)[self.rows :]:
                    self._write_row(row, ended)
                self.rows = len(self.progress.history)
                if self.final:
                    self._write_report(self.final)
                self.writer.flush()
            except Exception:
                with contextlib.suppress(OSError):
                    self._close()
                raise

    def _open(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        # The names of its files tell to which run a folder belongs.
        suffix = "." + hashlib.sha256(self.progress.run_id.encode()).hexdigest()[:16]
        new = self.log.path.with_suffix("")
        former = sorted(new.parent.glob(f"*/*{suffix}"))
        folder: Path = former[0].parent if former else new
        for path in former:
            path.replace(path.with_name(path.name.replace("tfevents", "former")))
        self.rows = 0
        # A TensorBoard that runs now has read the earlier files: it drops their events.
        writer = SummaryWriter(str(folder), purge_step=0, filename_suffix=suffix)
        writer.add_image("augmented", self.augmented(), 0, dataformats="HWC")
        return writer

    def _close(self) -> None:
        """Closes the file; whatever follows begins a new one."""
        writer, self.writer = self.writer, None
        if writer:
            writer.close()

    def _write_row(self, row: Row, ended: float) -> None:
        for name, value in dataclasses.asdict(row).items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(f"history/{name}", value, row.epoch, walltime=ended)

    def _write_report(self, report: Report) -> None:
        from torch.utils.tensorboard.summary import hparams

        figures = {f"final/{name}": getattr(report, name) for name in ("top1", "top3", "top5")}
        figures |= {"final/loss": report.loss, "final/macro_f1": report.macro["f1"]}
        for name, value in figures.items():
            self.writer.add_scalar(name, value, report.epoch)
        self.writer.add_image(
            "confusion_matrix", self.confusion(report), report.epoch, dataformats="HWC"
        )
        # `add_hparams` would write into a folder of its own, which shows as a second run.
        flags = {name: v for name, v in self.settings.flags.items() if name in OF_THE_RESULT}
        for summary in hparams(flags, figures):
            self.writer.file_writer.add_summary(summary)


def _with_times(history: Sequence[Row]) -> list[tuple[Row, float]]:
    """Each row, and the end of its epoch in seconds since 1970, as if the run had no breaks."""
    started = time.time() - sum(row.seconds for row in history)
    _, *ends = itertools.accumulate((row.seconds for row in history), initial=started)
    return list(zip(history, ends, strict=True))


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keeps Python from printing the `OSError` of the thread that writes the file.

    The writer raises it again, in this thread.
    """
    former = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, OSError):
            former(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = former
