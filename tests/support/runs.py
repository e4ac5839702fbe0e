"""Files as a run leaves them, for tests that read past runs."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.history import COLUMNS
from cifarnet.comparing.past_runs import PastRun, read_runs
from cifarnet.settings import Settings
from support.snapshots import make_row


def leave_run(
    folder: Path,
    accuracies: Sequence[float] = (0.5, 0.7, 0.6),
    name: str = "training_complete_20260101-000000",
    record: dict[str, Any] | None = None,
    **flags: Any,
) -> Path:
    """Writes log, history, run.json, metrics.json of a run into `folder`, and returns `folder`.

    `accuracies` are those of its epochs on the test images, `record` are keys of run.json.
    """
    settings = Settings.from_flags(**{"epochs": len(accuracies), **flags}).flags
    log, plots = folder / "log" / f"{name}.log", folder / "plots_complete"
    for directory in (log.parent, plots):
        directory.mkdir(parents=True, exist_ok=True)
    log.touch()
    with log.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for epoch, accuracy in enumerate(accuracies, 1):
            row = make_row(epoch, test_accuracy=accuracy, seconds=4.0, train_seconds=3.0)
            writer.writerow(dataclasses.asdict(row))
    finished = len(accuracies) == settings["epochs"]
    last = {"snapshot": "last.pth", "epoch": len(accuracies), "loss": 1.0}
    last |= {"top1": (accuracies or [0.0])[-1], "top3": 1.0, "top5": 1.0}
    keys = {
        "format": 1,
        "run_id": folder.name,
        "started": name[-15:],
        "settings": settings,
        "device": {"type": "cpu", "name": "a machine"},
        "dataset": {"name": "bars", "test": 40},
        "model": {"parameters": 1234},
        "epochs_done": len(accuracies),
        "figures": {"last": last, "best": None} if finished else None,
        "plot_dir": str(plots),
    }
    keys |= record or {}
    log.with_suffix(".run.json").write_text(json.dumps(keys))
    if finished:
        write_metrics(folder, {**last, "run": {"id": keys["run_id"], "settings": settings}})
    return folder


def write_metrics(run: Path, keys: dict[str, Any]) -> None:
    """Writes the metrics.json of `run`, with `keys` of it."""
    common = {"dataset": "bars", "images": 40, "weights": "raw", "loss": 1.0}
    (run / "plots_complete" / "metrics.json").write_text(json.dumps(common | keys))


def leave_predictions(run: Path, right: str, image: str = "{}") -> None:
    """Writes predictions.csv: a letter of `right` per image, y for a correct prediction."""
    rows = ["image,true,predicted,probability_true,probability_predicted"]
    for at, letter in enumerate(right):
        rows.append(f"{image.format(at)},a,{'a' if letter == 'y' else 'b'},0.5,0.5")
    (run / "plots_complete" / "predictions.csv").write_text("\n".join(rows) + "\n")


def runs_of(*names: object) -> list[PastRun]:
    """The runs that `names` mean, none of them skipped."""
    runs, skipped = read_runs([str(name) for name in names])
    assert skipped == []
    return runs
