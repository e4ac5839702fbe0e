"""Classifies image files; prints a table or JSON, and writes a CSV file."""

import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cifarnet.core.device import init_process
from cifarnet.core.errors import RunError, UserError, printable, reason
from cifarnet.core.files import writable_directory, write_named
from cifarnet.core.late import LateModule
from cifarnet.core.signals import Signals
from cifarnet.core.text import csv_text
from cifarnet.images.finding import NOT_IMAGES, find_images, notes_on_ignored
from cifarnet.inference.load import load_classifier
from cifarnet.inference.predictor import Outcome, Predictor, Ranking
from cifarnet.settings import Settings

if TYPE_CHECKING:
    from commands.explaining import Explainer

explaining = LateModule("commands.explaining")  # imports matplotlib

UNSURE = "unsure"


def run_prediction(options: dict[str, Any], settings: Settings) -> None:
    """Runs predict.py after its flags are read.

    `options` are images, names (of the models), tta, top_k, json, csv, threshold and explain.
    Raises `UserError` if no image could be read, and `RunError` if some could not.
    """
    paths, problems, notes = find_pictures(options["images"])
    for note in notes:
        print(note, file=sys.stderr)
    count = len(paths) + len(problems)
    unreadable = _show(paths, problems, options, settings)
    if unreadable == count:
        raise UserError(f"0 of {count} could be read; name images, or folders with images")
    if unreadable:
        raise RunError(f"{unreadable} of {count} could not be read; the lines above name them")


def find_pictures(names: Sequence[str]) -> tuple[list[str], list[Outcome], list[str]]:
    """Searches the folders among `names`, and all below them, for images.

    Returns the paths of the images, in order; the folders without any and the unreadable ones,
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
            problem = UserError(f"cannot read the folder {why.filename} ({reason(why)})")
            problems.append((why.filename, problem))
        if not search.images and not search.errors:
            problems.append((name, UserError(f"the folder {name} holds no images")))
    return paths, problems, notes_on_ignored({NOT_IMAGES: not_images}, system)


def _show(
    paths: Sequence[str],
    problems: Sequence[Outcome],
    options: dict[str, Any],
    settings: Settings,
) -> int:
    """Prints a line for each outcome; returns how many images and folders were not readable. For
    one image, without --json and --csv, raises the problem instead. Writes the CSV file, and says
    what was written. Raises `RunError` at the end if a file of --explain could not be written."""
    predictor = _load(options, settings) if paths else None
    explainer = _explainer(predictor, options["explain"]) if predictor else None
    classes = predictor.classifier.classes if predictor else ("",)
    threshold = options["threshold"]
    table = Table(paths, classes, threshold)
    alone = len(paths) + len(problems) == 1 and not options["json"] and not options["csv"]
    unreadable = maps = 0
    shown: list[Outcome] = []
    bar = tqdm(total=len(paths), desc="reading", unit="image", leave=False, disable=None)
    # Signals raise between two images only: inside tqdm or a thread pool one could raise while a
    # lock is being taken or freed. The command would then fail with a traceback, or hang.
    with bar, Signals() as signals, signals.deferred():

        def on_read() -> None:
            bar.update()
            signals.check()

        step = settings.training.eval_batch_size
        outcomes = predictor.classify(paths, step, on_read) if predictor else ()
        for path, outcome in itertools.chain(problems, outcomes):
            signals.check()
            failed = isinstance(outcome, UserError)
            if failed and alone:
                raise outcome
            if options["csv"]:
                shown.append((path, outcome))
            entries = outcome if failed else outcome[: options["top_k"]]
            target = None if failed or explainer is None else explainer.write(path, outcome)
            maps += target is not None
            if options["json"]:
                tqdm.write(_json_line(path, entries, threshold, target))
            elif not failed:
                tqdm.write(table.row(path, entries))
            if failed:
                unreadable += 1
                tqdm.write(f"error: {outcome}", file=sys.stderr)
    if maps:
        _say_written(options["explain"], maps, "image")
    if options["csv"] and predictor:
        _write_csv(shown, classes, options["csv"], threshold)
        _say_written(options["csv"], len(shown), "row")
    if explainer and explainer.failure:
        raise explainer.failure
    return unreadable


def _say_written(place: str, count: int, noun: str) -> None:
    """Says it on stderr: stdout has the predictions only."""
    number = f"{count:,} {noun}{'' if count == 1 else 's'}"
    print(f"written to {printable(place)}: {number}", file=sys.stderr)


def _load(options: dict[str, Any], settings: Settings) -> Predictor:
    device = init_process(settings.precision, settings.training.seed).device
    classifier = load_classifier(options["names"], options["tta"])
    return Predictor(classifier.to(device), device)


def is_unsure(ranking: Ranking, threshold: float) -> bool:
    """Whether the highest probability is below `threshold`."""
    return ranking[0][1] < threshold


def _explainer(predictor: Predictor, folder: str | None) -> "Explainer | None":
    """What --explain asks for. Raises `UserError`."""
    if folder is None:
        return None
    explainer = explaining.Explainer(predictor, Path(folder))
    writable_directory(folder, "--explain")
    return explainer


def _json_line(
    path: str, outcome: Ranking | UserError, threshold: float | None, target: Path | None
) -> str:
    """One line in ASCII, whatever the path: a terminal's escapes would break the JSON."""
    if isinstance(outcome, UserError):
        return json.dumps({"path": path, "error": str(outcome)})
    predictions = [{"class": name, "probability": p} for name, p in outcome]
    unsure = {} if threshold is None else {"unsure": is_unsure(outcome, threshold)}
    explained = {} if target is None else {"explained": str(target)}
    return json.dumps({"path": path, **unsure, "predictions": predictions, **explained})


def _write_csv(
    outcomes: Sequence[Outcome], classes: Sequence[str], path: str, threshold: float | None
) -> None:
    """Writes one row per outcome to `path`: the image, its class, and the probability of each
    class, or why it could not be read. With a `threshold` also whether it is unsure, 1 or 0.
    Raises `RunError`."""
    unsure = [] if threshold is None else ["unsure"]
    of_classes = [f"probability_{name}" for name in classes]
    rows = [["image", "predicted", "probability", "error", *unsure, *of_classes]]
    for image, outcome in outcomes:
        if isinstance(outcome, UserError):
            rows.append([image, "", "", str(outcome), *[""] * len([*unsure, *classes])])
        else:
            share, (name, highest) = dict(outcome), outcome[0]
            cells = [f"{p:.6g}" for p in (highest, *map(share.get, classes))]
            unsure_cell = [] if threshold is None else [int(is_unsure(outcome, threshold))]
            rows.append([image, name, cells[0], "", *unsure_cell, *cells[1:]])
    write_named(path, "--csv", csv_text(rows))


class Table:
    """Rows with aligned columns; the first row comes with the head. With a `threshold` they have
    the answer too: a class, or `UNSURE`."""

    def __init__(
        self, paths: Sequence[str], classes: Sequence[str], threshold: float | None = None
    ) -> None:
        self.threshold = threshold
        self.path_width = max([len("image"), *(len(printable(path)) for path in paths)])
        self.class_width = max(len(printable(name)) for name in classes)
        self.has_head = False

    def row(self, path: str, ranking: Ranking) -> str:
        """The path, then class and probability of each entry of `ranking`."""
        cells = [f"{printable(name):{self.class_width}} {share:7.2%}" for name, share in ranking]
        ranks = [f"{rank}.".ljust(self.class_width + 8) for rank in range(1, len(ranking) + 1)]
        if self.threshold is not None:
            answer = UNSURE if is_unsure(ranking, self.threshold) else printable(ranking[0][0])
            width = max(self.class_width, len(UNSURE))
            cells.insert(0, answer.ljust(width))
            ranks.insert(0, "answer".ljust(width))
        row = "  ".join([f"{printable(path):{self.path_width}}", *cells])
        if self.has_head:
            return row
        self.has_head = True
        return "  ".join([f"{'image':{self.path_width}}", *ranks]).rstrip() + "\n" + row
