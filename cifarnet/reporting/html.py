"""report.html: one page on a network that needs no other file and no network connection."""

import base64
import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cifarnet.checkpoints.calibration_images import MAY_BE_FITTED_HERE
from cifarnet.checkpoints.history import Row, start_and_end
from cifarnet.core.files import write_atomically
from cifarnet.core.log import clock
from cifarnet.core.machine import versions
from cifarnet.core.templates import read_template
from cifarnet.reporting.charts import epoch_words, thinned, training_charts
from cifarnet.reporting.confusions import confused_pairs, shaded
from cifarnet.reporting.corruptions import read_corruptions
from cifarnet.reporting.label_issues import ValidationImages
from cifarnet.reporting.map_tiles import MAP_COLORS, Maps, MapTiles
from cifarnet.reporting.map_tiles import SIDE as MAP_SIDE
from cifarnet.reporting.metrics import Report
from cifarnet.reporting.predictions import interval, reliability
from cifarnet.reporting.report_confidence import confidence_facts
from cifarnet.reporting.report_files import LABEL_ISSUES, PAGE, REPORT_FILES
from cifarnet.reporting.thumbnails import (
    COLUMNS,
    LARGEST,
    MOST,
    UNSURE,
    Choice,
    captions,
    choose,
    doubtful,
    sheet,
    tile_side,
)
from cifarnet.settings import FLAGS, settings_from_dict
from cifarnet.settings.parser import flags_of, shown_default

LIMIT = 4_000_000  # bytes of a page: it can be sent by mail
ROOM = 2_600_000  # pixels of all pictures, to begin with: about 2.5 MB
MOST_CLASSES = 100  # in the matrix: 10,000 cells are still quick
WRITTEN_CLASSES = 20  # at most, where cells show their counts
PAIRS = 3  # of classes, that a sentence names

# The published run: the figures of its author, October 2025, on the official test images.
PUBLISHED = {1: 0.8788, 3: 0.9774, 5: 0.9931}  # top-k accuracy
PUBLISHED_F1, PUBLISHED_EPOCHS, OFFICIAL_IMAGES = 0.8781, 250, 10_000
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

MEANINGS = {  # of the files that a run leaves, by name or by suffix
    "metrics.json": "all figures, for programs",
    "classification_report.txt": "the main figures, as text",
    "predictions.csv": "the prediction for each test image",
    "predictions.npz": "the probabilities of all classes, for numpy",
    "corruptions.csv": "the accuracy on corrupted test images",
    LABEL_ISSUES: "the images whose label the network doubts",
    PAGE: "this page",
    ".png": "a figure",
    ".log": "settings, versions, and one line per epoch",
    ".csv": "the history: one row per epoch",
    ".json": "settings, device, data set and figures of the run, for programs",
    ".pth": "a snapshot: the network, and all that is needed to resume the run",
    ".safetensors": "the trained network",
}


@dataclass(frozen=True)
class ReportData:
    """What the page shows beside the report. Unknown parts are left out.

    `larger(indices)` reads test images from their files: uint8 [K,3,LARGEST,LARGEST].
    `augmented()` draws R training images, each followed by augmented versions: uint8 [R,V,3,S,S].
    `files` are what the run left in other folders.
    """

    images: np.ndarray  # uint8 [N,3,S,S]: the test images
    official: bool  # whether they are of the official test images of CIFAR-10
    names: Sequence[str | int]  # of the test images: see `ImageSet`
    history: Sequence[Row] = ()
    computed_on: str = ""
    larger: Callable[[np.ndarray], np.ndarray] | None = None  # None: the files show no more
    augmented: Callable[[], np.ndarray] | None = None
    files: Sequence[Path] = ()
    maps: Maps | None = None  # class activation maps
    about_maps: str = ""  # what to know of them, or why there are none
    validation: ValidationImages | None = None
    no_class: np.ndarray | None = None  # uint8 [K,3,S,S]: a picture of each kind of no class


def write_page(report: Report, figures: dict[str, Any], data: ReportData, directory: Path) -> None:
    """Writes report.html below `LIMIT` bytes into `directory`: fewer images where they do not fit.
    `figures` are those of metrics.json. Raises `OSError`."""
    template = read_template(Path(__file__).with_name("report.html.j2"), percent=_percent)
    content = _about(report, figures, data, directory) | _results(report, data)
    augmented = data.augmented() if data.augmented else data.images[:0, None]
    room = ROOM // (LARGEST if data.larger else tile_side(data.images.shape[-1])) ** 2
    maps = MapTiles(data.maps, report.predictions, choose(report.predictions, room).images)
    while True:
        pictures = _pictures(report, data, augmented, choose(report.predictions, room))
        pictures["maps"] = maps.sheet(pictures["choice"].images)
        page = template.render(content | pictures).encode(errors="backslashreplace")
        if len(page) < LIMIT or not room:
            break
        room = room * 9 * LIMIT // (10 * len(page))
    write_atomically(directory / PAGE, lambda file: file.write(page))


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


# --- the parts of the page ---


def _about(
    report: Report, figures: dict[str, Any], data: ReportData, directory: Path
) -> dict[str, Any]:
    """The network, its run, its settings and files."""
    run = figures["run"]
    flags = {name: value for name, value in run.get("settings", {}).items() if name in FLAGS}
    flags.pop("resume", None)  # does not change the result
    differs = [name for name, value in flags.items() if value != FLAGS[name].default]
    files = [directory / name for name in REPORT_FILES]
    files = [path for path in files if path.name == PAGE or path.is_file()]
    settings = settings_from_dict(flags)
    return {
        "report": report,
        "date": time.strftime("%Y-%m-%d"),
        "corruptions": read_corruptions(directory),
        "models": [(name, figures[name]) for name in ("last", "best") if figures[name]],
        "published": _beside_published(report) if list(report.per_class) == CIFAR10 else [],
        "published_epochs": PUBLISHED_EPOCHS,
        "official_images": OFFICIAL_IMAGES,
        "fitted_warning": MAY_BE_FITTED_HERE,
        "official": data.official,
        "computed_on": data.computed_on,
        "settings": settings,
        "differing": [(name, _shown(flags[name]), shown_default(FLAGS[name])) for name in differs],
        "defaults": [(name, _shown(value)) for name, value in flags.items() if name not in differs],
        "typed": run.get("command"),
        "evaluated_by": figures.get("evaluated_by"),
        "trained": bool(flags or data.history),
        "command": shlex.join(["python", "main.py", *flags_of(settings)]),
        "without_paths": "data_dir" not in flags,
        "versions": versions(),
        "files": [
            (path, MEANINGS.get(path.name, MEANINGS.get(path.suffix, "")))
            for path in (*data.files, *files)
        ],
    }


def _beside_published(report: Report) -> list[tuple[str, str, str, str]]:
    """The rows of a table: what, of this network, of the published run, and the difference, which
    is shown where the published figure is outside the interval of this network."""
    rows = []
    for k, share in report.tops().items():
        low, high = interval(share, report.images)
        difference = f"{100 * (share - PUBLISHED[k]):+.2f} points"
        if low <= PUBLISHED[k] <= high:
            difference = "unclear"
        rows.append((f"top-{k}", _percent(share), _percent(PUBLISHED[k]), difference))
    return [*rows, ("macro F1", f"{report.macro['f1']:.4f}", f"{PUBLISHED_F1:.4f}", "")]


def _shown(value: Any) -> str:
    """The value of a flag, in words."""
    if value is None:
        return "not set"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _results(report: Report, data: ReportData) -> dict[str, Any]:
    """The figures of the network, and the curves of its training."""
    history = thinned(data.history)
    bins = reliability(report.predictions)
    return {
        "classes": list(report.per_class),
        **confidence_facts(report),
        "pairs": confused_pairs(report.confusion_matrix)[:PAIRS],
        "matrix": shaded(report.confusion_matrix, MOST_CLASSES),
        "written": len(report.per_class) <= WRITTEN_CLASSES,
        "bins": bins,
        "log1p": math.log1p,
        "unsure": UNSURE,
        "side": data.images.shape[-1],
        "charts": training_charts(history) if history else [],
        "plotted": len(history),
        "epoch_words": epoch_words(history),
        "epochs": data.history[-1].epoch if data.history else 0,
        "start_and_end": start_and_end(data.history),
        "seconds": sum(row.train_seconds for row in data.history),
        "clock": clock,
    }


def _pictures(
    report: Report, data: ReportData, augmented: np.ndarray, choice: Choice
) -> dict[str, Any]:
    """The pictures, and what the page's script needs to know of each."""
    tiles = (data.larger or data.images.__getitem__)(choice.images)
    doubts, about_doubts = doubtful(data.validation) if data.validation else (data.images[:0], [])
    shown = captions(report.predictions, choice.images, choice.images) + about_doubts
    rows, versions = augmented.shape[:2]
    no_class = data.images[:0] if data.no_class is None else data.no_class
    others = np.concatenate([doubts, augmented.reshape(-1, *doubts.shape[1:]), no_class])
    others = F.interpolate(torch.from_numpy(others), tiles.shape[-1])  # nearest: visible pixels
    tiles = np.concatenate([tiles, others.numpy()])
    names = (data.names[i] for i in choice.images)
    return {
        "choice": choice,
        "validation_doubts": list(range(len(choice.images), len(shown))),
        "most": min(choice.per_cell, MOST),
        "sheet": base64.b64encode(sheet(tiles)).decode(),
        "tile": tile_side(tiles.shape[-1]),
        "map_tile": MAP_SIDE,
        "map_colors": MAP_COLORS,
        "about_maps": data.about_maps,
        "tile_columns": COLUMNS,
        "shown": shown,
        "names": [n if isinstance(n, str) else f"image {n}" for n in names],
        "augmented": {"first": len(shown), "rows": rows, "columns": versions},
        "samples": len(shown) + rows * versions,  # the place of the first picture of no class
    }
