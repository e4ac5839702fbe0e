"""Tells what pictures show: `python predict.py --pretrained long photo.jpg holidays/`.

The request is checked before torch is imported, which takes seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifarnet.checkpoints.places import find_all_trained
from cifarnet.core.commandline import path_argument, run_command
from cifarnet.core.errors import RunError, UserError, printable
from cifarnet.images.finding import NOT_IMAGES, find_images, ignored
from cifarnet.settings import Settings
from cifarnet.settings.parser import add_tta, build_parser

if TYPE_CHECKING:
    from cifarnet.inference.predictor import Outcome, Predictor, Ranking


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if some pictures could not be read; 2 if none could, or for a
    wrong request."""
    return run_command(lambda: _predict(sys.argv[1:] if argv is None else argv))


def _predict(argv: Sequence[str]) -> None:
    options, settings = _parse(argv)
    paths, problems, others = find_pictures(options.pictures)
    if others:
        print(ignored(others, NOT_IMAGES), file=sys.stderr)
    asked = len(paths) + len(problems)
    unreadable = _show(paths, problems, options, settings)
    if unreadable == asked:
        raise UserError(f"none of these {asked} could be read; name pictures, or folders with some")
    if unreadable:
        raise RunError(f"{unreadable} of {asked} could not be read; the lines above name them")


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Settings]:
    parser = build_parser("Tells what pictures show.", ("batch_size", "device"))
    parser.add_argument(
        "pictures",
        type=path_argument,
        nargs="+",
        metavar="IMAGE",
        help="Picture of any size and mode, or a folder to search for pictures.",
    )
    parser.add_argument(
        "--pretrained",
        required=True,
        metavar="NAME|PATH,...",
        help="Trained network: the name of a result, a file that export.py wrote, or a .pth "
        "snapshot. Several, separated by commas, are an ensemble: their probabilities are "
        "averaged.",
    )
    add_tta(parser)
    parser.add_argument(
        "--top_k", type=int, default=3, metavar="N", help="Classes to name (default: %(default)s)."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print one line of JSON per picture, not a table."
    )
    options = parser.parse_args(argv)
    if options.top_k < 1:
        raise UserError(f"--top_k {options.top_k} is out of range; name at least one class")
    given = {name: getattr(options, name) for name in ("batch_size", "device") if name in options}
    settings = Settings.from_flags(**given)
    options.pretrained = find_all_trained(options.pretrained)
    return options, settings


def find_pictures(names: Sequence[str]) -> tuple[list[str], list[Outcome], list[Path]]:
    """Searches the folders among `names`, and all below them, for pictures.

    Returns the paths of the pictures, in order; the folders without any and the unreadable ones,
    with a `UserError` each; and the other files and links to folders, as `find_images` does.
    """
    paths: list[str] = []
    others: list[Path] = []
    problems: list[Outcome] = []
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112, Path.is_dir raises for too long a name
            paths.append(name)
            continue
        found, ignorable, closed = find_images(name)
        paths += map(str, found)
        others += ignorable
        for why in closed:
            problem = UserError(f"cannot read the folder {why.filename} ({why.strerror})")
            problems.append((why.filename, problem))
        if not found and not closed:
            problems.append((name, UserError(f"the folder {name} holds no pictures")))
    return paths, problems, others


def _show(
    paths: Sequence[str],
    problems: Sequence[Outcome],
    options: argparse.Namespace,
    settings: Settings,
) -> int:
    """Prints a line for each outcome; returns how many pictures and folders were not readable.

    Raises the problem instead if only one picture was asked for.
    """
    from tqdm import tqdm

    predictor = _predictor(options, settings) if paths else None
    table = Table(paths, predictor.classifier.classes if predictor else ("",))
    unreadable = 0
    with tqdm(total=len(paths), desc="reading", unit="picture", leave=False, disable=None) as bar:
        step = settings.training.eval_batch_size
        outcomes = predictor.classify(paths, step, bar.update) if predictor else ()
        for path, outcome in itertools.chain(problems, outcomes):
            failed = isinstance(outcome, UserError)
            if failed and len(paths) + len(problems) == 1:
                raise outcome
            shown = outcome if failed else outcome[: options.top_k]
            if options.json:
                tqdm.write(_json_line(path, shown))
            elif not failed:
                tqdm.write(table.row(path, shown))
            if failed:
                unreadable += 1
                tqdm.write(f"error: {outcome}", file=sys.stderr)
    return unreadable


def _predictor(options: argparse.Namespace, settings: Settings) -> Predictor:
    # These import torch.
    from cifarnet.core.device import init_process
    from cifarnet.inference.predictor import Predictor
    from model import build_classifier, read_network

    device = init_process(settings.precision, settings.training.seed).device
    classifier = build_classifier(list(map(read_network, options.pretrained)), options.tta)
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
        self.begun = False

    def row(self, path: str, ranking: Ranking) -> str:
        """The path, then class and probability of each entry of `ranking`."""
        cells = [f"{printable(name):{self.class_width}} {share:7.2%}" for name, share in ranking]
        row = "  ".join([f"{printable(path):{self.path_width}}", *cells])
        if self.begun:
            return row
        self.begun = True
        places = [f"{place}.".ljust(self.class_width + 8) for place in range(1, len(ranking) + 1)]
        return "  ".join([f"{'picture':{self.path_width}}", *places]).rstrip() + "\n" + row


if __name__ == "__main__":
    sys.exit(main())
