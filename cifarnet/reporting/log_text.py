"""Reads the text of a log: settings, facts, and a row an epoch."""

import math
import re
from dataclasses import Field
from typing import Any

from cifarnet.settings import FLAGS
from cifarnet.settings.flags import value_type

# The columns of a history that are read here.
COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("test_loss", "test_accuracy", "seconds", "train_seconds", "images_per_second"),
)
EPOCH_LINE = re.compile(
    r"^\d\d:\d\d:\d\d epoch (?P<epoch>\d+)/\d+ \| lr \S+"
    r" \| train (?P<train_loss>\S+) (?P<train_accuracy>\S+%)"
    r"(?: \| val (?P<val_loss>\S+) (?P<val_accuracy>\S+%))?"
    r"(?: \| test (?P<test_loss>\S+) (?P<test_accuracy>\S+%))?"
    r"(?: \| raw [^|]+)? \| (?P<seconds>\S+) s \| (?P<images_per_second>\S+) img/s \|",
    re.MULTILINE,
)
SETTINGS_LINE = re.compile(r"^\d\d:\d\d:\d\d (?:settings|defaults): (.*)$", re.MULTILINE)
FACTS = {
    "dataset": re.compile(r"^\d\d:\d\d:\d\d data: (.+), \d+ training", re.MULTILINE),
    "images": re.compile(r"^\d\d:\d\d:\d\d data: .+, (\d+) test images, ", re.MULTILINE),
    "machine": re.compile(r"^\d\d:\d\d:\d\d device: (.+?), \d+ threads", re.MULTILINE),
    "parameters": re.compile(r"^\d\d:\d\d:\d\d model: ([\d,]+) trainable", re.MULTILINE),
    "top1": re.compile(r"^\d\d:\d\d:\d\d last model, epoch \d+: top-1 (\S+%)", re.MULTILINE),
}

EpochRow = dict[str, float | None]  # by column; None: not measured


def facts_in(log: str) -> dict[str, str | None]:
    """What a log says of data set, machine, parameters and top-1; of several parts the last one."""
    return {name: (found.findall(log) or [None])[-1] for name, found in FACTS.items()}


def history_in(log: str) -> list[EpochRow]:
    """The history by the lines of a log, rounded. An epoch that ran twice counts as it was last."""
    rows = {}
    for found in EPOCH_LINE.finditer(log):
        shown = found.groupdict()
        rows[int(shown["epoch"])] = {name: number(shown.get(name)) for name in COLUMNS}
    return [rows[epoch] for epoch in sorted(rows)]


def number(text: str | None) -> float | None:
    """The finite number that `text` shows, perhaps in percent; None where there is none."""
    if not text:
        return None
    try:
        value = float(text.replace("%", "e-2"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def settings_in(log: str) -> dict[str, Any]:
    """The settings that a log names; in a log of several parts, those of the last one."""
    settings = {}
    for line in SETTINGS_LINE.findall(log):
        parts = re.split(r"(?:^|, )([a-z_0-9]+)=", line)  # a value may hold a comma
        settings |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: _value(FLAGS[name], text) for name, text in settings.items() if name in FLAGS}


def _value(spec: Field, text: str) -> Any:
    """The value that the log shows as `text`."""
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    try:
        return value_type(spec)(text)
    except ValueError:  # of another version
        return text
