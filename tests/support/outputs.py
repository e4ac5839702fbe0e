"""What a run left in its folders, read without the project's own code."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

TIMINGS = {"seconds", "train_seconds", "images_per_second", "data_wait"}


def rows_of(log_dir: Path) -> list[dict[str, str]]:
    """The newest history."""
    with max(log_dir.glob("*.csv")).open(newline="") as file:
        return list(csv.DictReader(file))


def log_text(log_dir: Path = Path("log")) -> str:
    """The newest log."""
    return max(log_dir.glob("*.log")).read_text(encoding="utf-8")


def figures(plot_dir: Path = Path("plots_complete")) -> dict[str, Any]:
    """The content of metrics.json."""
    return json.loads((plot_dir / "metrics.json").read_text(encoding="utf-8"))


def snapshot(name: str, directory: str = "snapshots_complete") -> dict[str, Any]:
    """The content of a snapshot."""
    return torch.load(Path(directory) / name, weights_only=True)


def epoch_of(name: str, directory: str = "snapshots_complete") -> int:
    """The epoch of a snapshot."""
    return snapshot(name, directory)["origin"]["epoch"]


def best_epoch(
    name: str, directory: str = "snapshots_complete", column: str = "test_accuracy"
) -> int:
    """The epoch of the highest accuracy in the history of a snapshot, the first of equal ones."""
    rows = [row for row in snapshot(name, directory)["history"] if row[column] is not None]
    return max(rows, key=lambda row: row[column])["epoch"]


def metadata(path: Path) -> dict[str, Any]:
    """The metadata of a weights file, without its checksum."""
    with safe_open(path, "pt") as file:
        texts = {name: text for name, text in file.metadata().items() if name != "checksum"}
    return {name: json.loads(text) for name, text in texts.items()}


def settings_of(path: str = "snapshots_complete/last.pth") -> dict[str, Any]:
    """The flags of the run of a snapshot or of a weights file."""
    is_snapshot = path.endswith(".pth")
    content = torch.load(path, weights_only=True) if is_snapshot else metadata(Path(path))
    return content["origin"]["settings"]


def assert_same_state(a: Any, b: Any, where: str = "") -> None:
    """Compares two snapshots bit for bit, apart from timings."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in TIMINGS:
                assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
