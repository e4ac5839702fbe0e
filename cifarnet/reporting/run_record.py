"""run.json: what a run knows about itself, for other programs."""

import json
import time
from collections.abc import Callable
from typing import Any

from cifarnet.checkpoints.history import Progress
from cifarnet.core.files import write_text
from cifarnet.core.log import RunLog
from cifarnet.reporting.recorders import Recorder

FORMAT = 1
SUFFIX = ".run.json"  # stands in place of the log's .log


class RunRecord(Recorder):
    """Writes run.json beside the log at the start of a run and at its end."""

    failure = "run.json could not be written"

    def __init__(self, log: RunLog, facts: Callable[[], dict[str, Any]]) -> None:
        """`facts()` are the keys that `docs/reading-a-run.md` lists, but for those set here."""
        self.log, self.facts = log, facts
        self.started, self.progress = _now(), Progress()

    def start(self, progress: Progress) -> None:
        self.progress = progress
        self._write("running", None, None)

    def close(self, status: str, figures: dict[str, Any] | None) -> None:
        self._write(status, _now(), figures)

    def _write(self, status: str, ended: str | None, figures: dict[str, Any] | None) -> None:
        progress = self.progress
        content = {
            "format": FORMAT,
            "run_id": progress.run_id,
            "status": status,
            "started": self.started,
            "ended": ended,
            "epochs_done": progress.epoch,
            "seconds": sum(row.train_seconds for row in progress.history),
            **self.facts(),
            "figures": figures,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_text(self.log.path.with_suffix(SUFFIX), text)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
