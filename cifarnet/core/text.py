"""Text: names, and CSV."""

import csv
import io
import unicodedata
from collections.abc import Iterable


def composed(name: str) -> str:
    """`name` in Unicode's composed form (NFC). macOS decomposes: its "é" has two characters."""
    return unicodedata.normalize("NFC", name)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    r"""`rows` as CSV. The lines end in "\n"."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
