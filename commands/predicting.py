"""Classifies picture files, and prints a table or JSON."""

import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cifarnet.core.device import init_process
from cifarnet.core.errors import RunError, UserError, printable
from cifarnet.images.finding import NOT_IMAGES, find_images, notes_on_ignored
from cifarnet.inference.load import load_classifier
from cifarnet.inference.predictor import Outcome, Predictor, Ranking
from cifarnet.settings import Settings


def run_prediction(options: dict[str, Any], settings: Settings) -> None:
    """What predict.py does once its flags are read.

    `options` are pictures, names (of the models), tta, top_k and json. Raises `UserError` if no
    picture could be read, and `RunError` if some could not.
    """
    paths, problems, notes = find_pictures(options["pictures"])
    for note in notes:
        print(note, file=sys.stderr)
    count = len(paths) + len(problems)
    unreadable = _show(paths, problems, options, settings)
    if unreadable == count:
        raise UserError(f"none of these {count} could be read; name pictures, or folders with some")
    if unreadable:
        raise RunError(f"{unreadable} of {count} could not be read; the lines above name them")


def find_pictures(names: Sequence[str]) -> tuple[list[str], list[Outcome], list[str]]:
    """Searches the folders among `names`, and all below them, for pictures.

    Returns the paths of the pictures, in order; the folders without any and the unreadable ones,
    with a `UserError` each; and what the user should know about other files, in lines.
    """
    paths: list[str] = []
    not_images: list[Path] = []
    system: list[Path] = []
    problems: list[Outcome] = []
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112, Path.is_dir raises for too long a name
            paths.append(name)
            continue
        search = find_images(name)
        paths += map(str, search.images)
        not_images += search.not_images
        system += search.system
        for why in search.errors:
            problem = UserError(f"cannot read the folder {why.filename} ({why.strerror})")
            problems.append((why.filename, problem))
        if not search.images and not search.errors:
            problems.append((name, UserError(f"the folder {name} holds no pictures")))
    return paths, problems, notes_on_ignored({NOT_IMAGES: not_images}, system)


def _show(
    paths: Sequence[str],
    problems: Sequence[Outcome],
    options: dict[str, Any],
    settings: Settings,
) -> int:
    """Prints a line for each outcome; returns how many pictures and folders were not readable.
    Raises the problem instead if only one picture was asked for."""
    predictor = _load(options, settings) if paths else None
    table = Table(paths, predictor.classifier.classes if predictor else ("",))
    unreadable = 0
    with tqdm(total=len(paths), desc="reading", unit="picture", leave=False, disable=None) as bar:
        step = settings.training.eval_batch_size
        outcomes = predictor.classify(paths, step, bar.update) if predictor else ()
        for path, outcome in itertools.chain(problems, outcomes):
            failed = isinstance(outcome, UserError)
            if failed and len(paths) + len(problems) == 1:
                raise outcome
            entries = outcome if failed else outcome[: options["top_k"]]
            if options["json"]:
                tqdm.write(_json_line(path, entries))
            elif not failed:
                tqdm.write(table.row(path, entries))
            if failed:
                unreadable += 1
                tqdm.write(f"error: {outcome}", file=sys.stderr)
    return unreadable


def _load(options: dict[str, Any], settings: Settings) -> Predictor:
    device = init_process(settings.precision, settings.training.seed).device
    classifier = load_classifier(options["names"], options["tta"])
    return Predictor(classifier.to(device), device)


def _json_line(path: str, outcome: Ranking | UserError) -> str:
    """One line in ASCII, whatever the path: a terminal's escapes would break the JSON."""
    if isinstance(outcome, UserError):
        return json.dumps({"path": path, "error": str(outcome)})
    return json.dumps(
        {"path": path, "predictions": [{"class": name, "probability": p} for name, p in outcome]}
    )


class Table:
    """Rows with aligned columns; the first row comes with the head."""

    def __init__(self, paths: Sequence[str], classes: Sequence[str]) -> None:
        self.path_width = max([len("picture"), *(len(printable(path)) for path in paths)])
        self.class_width = max(len(printable(name)) for name in classes)
        self.has_head = False

    def row(self, path: str, ranking: Ranking) -> str:
        """The path, then class and probability of each entry of `ranking`."""
        cells = [f"{printable(name):{self.class_width}} {share:7.2%}" for name, share in ranking]
        row = "  ".join([f"{printable(path):{self.path_width}}", *cells])
        if self.has_head:
            return row
        self.has_head = True
        ranks = [f"{rank}.".ljust(self.class_width + 8) for rank in range(1, len(ranking) + 1)]
        return "  ".join([f"{'picture':{self.path_width}}", *ranks]).rstrip() + "\n" + row
