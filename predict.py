"""Tells what pictures show: `python predict.py --pretrained long photo.jpg holidays/`."""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from cifarnet.checkpoints.snapshots import read_trained
from cifarnet.checkpoints.weights import Weights
from cifarnet.core.commandline import build_parser, run_command
from cifarnet.core.device import Runtime, start
from cifarnet.core.errors import RunError, UserError, printable
from cifarnet.core.settings import Settings
from cifarnet.images.imageset import ImageSet
from cifarnet.images.pictures import IMAGE_SUFFIXES, NO_SUFFIX, SUFFIXES, ignored, read_images
from cifarnet.reporting.metrics import predict
from data import EvalBatches
from model import restore

Ranking = list[tuple[str, float]]  # classes and their probabilities in [0, 1], the likeliest first
Outcome = tuple[str, Ranking | UserError]  # of a picture, or of a folder, by its path


def main(argv: Sequence[str] | None = None) -> int:
    """The command: exit code 0, 1 where some pictures could not be read, 2 for a wrong request or where none could."""
    return run_command(lambda: _predict(sys.argv[1:] if argv is None else argv))


def _predict(argv: Sequence[str]) -> None:
    parser = build_parser("Tells what pictures show.", ("batch_size", "device"))
    parser.add_argument("pictures", nargs="+", metavar="IMAGE", help="pictures of any size and mode; folders are "
                        f"searched for {SUFFIXES}")  # fmt: skip
    parser.add_argument("--pretrained", required=True, metavar="NAME|PATH", help="the trained network: the name of a "
                        "result, a .safetensors file or a .pth snapshot")  # fmt: skip
    parser.add_argument(
        "--top_k", type=int, default=3, metavar="N", help="classes to name (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="a line of JSON for each picture, instead of the table"
    )
    given = vars(parser.parse_args(argv))
    names, pretrained, top_k, as_json = (
        given.pop(name) for name in ("pictures", "pretrained", "top_k", "json")
    )
    if top_k < 1:
        raise UserError(f"--top_k {top_k} is out of range; name one class at least")
    config = Settings(**given)
    runtime = start(config)
    trained = read_trained(pretrained)
    model = restore(trained).to(runtime.device)
    paths, problems, others = find_pictures(names)
    if others:
        print(ignored(others, NO_SUFFIX), file=sys.stderr)
    asked, unreadable = len(paths) + len(problems), 0
    table = Table(paths, trained.classes)
    with tqdm(total=len(paths), desc="reading", unit="picture", leave=False, disable=None) as bar:
        outcomes = classify(model, trained, paths, config.batch_size, runtime, bar.update)
        for path, outcome in itertools.chain(problems, outcomes):
            failed = isinstance(outcome, UserError)
            if as_json:
                tqdm.write(_json_line(path, outcome if failed else outcome[:top_k]))
            elif not failed:
                tqdm.write(table.row(path, outcome[:top_k]))
            if failed:
                if asked == 1:
                    raise outcome
                unreadable += 1
                tqdm.write(f"error: {outcome}", file=sys.stderr)
    if unreadable == asked:
        raise UserError(f"none of these {asked} could be read; name pictures, or folders with some")
    if unreadable:
        raise RunError(f"{unreadable} of {asked} could not be read; they are named above")


def find_pictures(names: Sequence[str]) -> tuple[list[str], list[Outcome], list[Path]]:
    """The paths of the pictures that `names` mean, themselves or anywhere below them, in order; the folders that hold
    none or cannot be read; and the files there that are no pictures by their names. Hidden files and folders are passed
    over, and so are links to folders."""
    paths: list[str] = []
    others: list[Path] = []
    problems: list[Outcome] = []
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112, for Path.is_dir raises for names too long
            paths.append(name)
            continue
        before, closed = len(paths), []
        for folder, below, files in os.walk(name, onerror=closed.append):
            below[:] = sorted(inner for inner in below if not inner.startswith("."))
            for path in (Path(folder, file) for file in sorted(files) if not file.startswith(".")):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    paths.append(str(path))
                else:
                    others.append(path)
        problems += [
            (p.filename, UserError(f"cannot read the folder {p.filename} ({p.strerror})"))
            for p in closed
        ]
        if len(paths) == before and not closed:
            problems.append((name, UserError(f"the folder {name} holds no pictures ({SUFFIXES})")))
    return paths, problems, others


def classify(
    model: nn.Module,
    trained: Weights,
    paths: Sequence[str],
    batch_size: int,
    runtime: Runtime,
    progress: Callable[[], object],
) -> Iterator[Outcome]:
    """What the pictures `paths` show, in order, by batches; `progress()` is called as each has been read."""
    for first in range(0, len(paths), batch_size):
        part, read = paths[first : first + batch_size], []
        with contextlib.closing(read_images(map(Path, part))) as reading:
            for outcome in reading:
                read.append(outcome)
                progress()
        pixels = [outcome[0] for outcome in read if not isinstance(outcome, UserError)]
        ranked = iter(rank(model, trained, np.stack(pixels), runtime) if pixels else ())
        for path, outcome in zip(part, read, strict=True):
            yield path, outcome if isinstance(outcome, UserError) else next(ranked)


def rank(model: nn.Module, trained: Weights, pixels: np.ndarray, runtime: Runtime) -> list[Ranking]:
    """For each of the pictures uint8 [N,3,32,32] all classes; equally likely ones in the network's own order."""
    unlabelled = ImageSet(
        torch.from_numpy(pixels),
        torch.zeros(len(pixels), dtype=torch.int64),
        tuple(trained.classes),
    )
    batches = EvalBatches(unlabelled, len(pixels), runtime, tuple(trained.mean), tuple(trained.std))
    logits, _ = predict(model, batches, runtime)  # [N,C]
    shares, order = logits.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    return [
        [(trained.classes[label], share) for label, share in zip(*pair, strict=True)]
        for pair in zip(order.tolist(), shares.tolist(), strict=True)
    ]


def _json_line(path: str, outcome: Ranking | UserError) -> str:
    """In ASCII, whatever the path: a terminal's own escapes would be no JSON."""
    if isinstance(outcome, UserError):
        return json.dumps({"path": path, "error": str(outcome)})
    return json.dumps(
        {"path": path, "predictions": [{"class": name, "probability": p} for name, p in outcome]}
    )


class Table:
    """Rows as wide as what may come in them; the first one brings the head."""

    def __init__(self, paths: Sequence[str], classes: Sequence[str]) -> None:
        self.path_width = max([len("picture"), *(len(printable(path)) for path in paths)])
        self.class_width = max(len(printable(name)) for name in classes)
        self.begun = False

    def row(self, path: str, ranking: Ranking) -> str:
        """`path`, then class and probability of each entry of `ranking`."""
        cells = [f"{printable(name):{self.class_width}} {share:7.2%}" for name, share in ranking]
        row = "  ".join([f"{printable(path):{self.path_width}}", *cells])
        if self.begun:
            return row
        self.begun = True
        places = [f"{place}.".ljust(self.class_width + 8) for place in range(1, len(ranking) + 1)]
        return "  ".join([f"{'picture':{self.path_width}}", *places]).rstrip() + "\n" + row


if __name__ == "__main__":
    sys.exit(main())
