"""corruptions.csv: the accuracy on corrupted test images, and its table in report.html."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cifarnet.core.errors import UserError
from cifarnet.core.files import read_file, write_text
from cifarnet.core.text import csv_text

CORRUPTIONS = "corruptions.csv"
SEVERITIES = (1, 2, 3, 4, 5)


class CorruptionRow(NamedTuple):
    """The accuracy in [0, 1] on all test images after one corruption.

    `severity` is 1 to 5. It is 0 for "none", the images as they are, and the quality for
    "jpeg_quality".
    """

    corruption: str
    severity: int
    accuracy: float
    images: int


def mean_accuracy(rows: Sequence[CorruptionRow]) -> float:
    """The mean over all corruptions at severities 1 to 5."""
    return statistics.mean(row.accuracy for row in rows if row.severity in SEVERITIES)


def write_corruptions(rows: Sequence[CorruptionRow], directory: Path) -> None:
    """Writes corruptions.csv into `directory`. Raises `OSError`."""
    rounded = (row._replace(accuracy=round(row.accuracy, 6)) for row in rows)
    write_text(directory / CORRUPTIONS, csv_text([CorruptionRow._fields, *rounded]))


class CorruptionTable(NamedTuple):
    """The content of corruptions.csv; accuracies are in [0, 1]."""

    images: int
    clean: float
    mean: float
    graded: dict[str, list[float]]  # at severities 1 to 5, by corruption
    means: list[float]  # by severity
    qualities: dict[int, float]  # by quality of JPEG compression

    @property
    def worst(self) -> tuple[str, float]:
        """The corruption with the lowest mean accuracy, in words, and this accuracy."""
        means = {name: statistics.mean(shares) for name, shares in self.graded.items()}
        name = min(means, key=means.__getitem__)
        return name.replace("_", " "), means[name]


def read_corruptions(directory: Path) -> CorruptionTable | None:
    """The content of corruptions.csv in `directory`; None if there is no such file.

    Raises `UserError` for a damaged file.
    """
    path = directory / CORRUPTIONS
    return _table(read_rows(path)) if path.is_file() else None


def read_rows(path: Path) -> list[CorruptionRow]:
    """The rows of the corruptions.csv `path`. Raises `UserError` for a damaged file."""
    try:
        (_, *lines) = csv.reader(read_file(path).decode().splitlines())
        rows = [
            CorruptionRow(name, int(severity), float(accuracy), int(images))
            for name, severity, accuracy, images in lines
        ]
        _table(rows)  # the rows are those of a table
        return rows
    except (IndexError, ValueError):
        raise UserError(
            f"{path} is not a file that evaluate.py --corruptions wrote; remove it"
        ) from None


def _table(rows: Sequence[CorruptionRow]) -> CorruptionTable:
    graded: dict[str, list[float]] = {}
    for row in rows:
        if row.severity in SEVERITIES:
            graded.setdefault(row.corruption, []).append(row.accuracy)
    return CorruptionTable(
        rows[0].images,
        rows[0].accuracy,
        mean_accuracy(rows),
        graded,
        [statistics.mean(column) for column in zip(*graded.values(), strict=True)],
        {row.severity: row.accuracy for row in rows if row.severity > SEVERITIES[-1]},
    )
