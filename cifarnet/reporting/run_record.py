"""The file .run.json beside a log: what a run knows about itself, for other programs."""

import json
import time
from typing import Any

from cifarnet.checkpoints.history import Progress
from cifarnet.core.files import write_text
from cifarnet.core.log import RunLog
from cifarnet.reporting.recorders import Recorder
from cifarnet.reporting.report_files import RUN_JSON, RUN_JSON_FORMAT


class RunJson(Recorder):
    """Writes run.json beside the log at the start of a run and at its end."""

    failure = "run.json could not be written"

    def __init__(self, log: RunLog, facts: dict[str, Any]) -> None:
        """`facts` are the keys that `docs/reading-a-run.md` lists, but for those set here."""
        self.log, self.facts = log, facts
        self.started, self.progress = _now(), Progress()
        self.figures: dict[str, Any] | None = None

    def start(self, progress: Progress) -> None:
        self.progress = progress
        self._write("running", ended=None)

    def close(self, status: str, figures: dict[str, Any] | None) -> None:
        self.figures = figures or self.figures  # a run may fail after its evaluation
        self._write(status, ended=_now())

    def _write(self, status: str, ended: str | None) -> None:
        progress = self.progress
        content = {
            "format": RUN_JSON_FORMAT,
            "run_id": progress.run_id,
            "status": status,
            "started": self.started,
            "ended": ended,
            "epochs_done": progress.epoch,
            "comparable_after": progress.comparable_after,
            "seconds": sum(row.train_seconds for row in progress.history),
            **self.facts,
            "figures": self.figures,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_text(self.log.path.with_suffix(RUN_JSON), text)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
