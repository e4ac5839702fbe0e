"""Writes a trained model in other formats: `python export.py --pretrained long --format onnx`.

Each file is read back and compared with the network before it takes its place. The request is
checked before torch is imported, which takes seconds.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.paths import check_snapshot, resolve_model_path
from cifarnet.core.arguments import check_package, path_argument
from cifarnet.core.command import run_command
from cifarnet.core.errors import UserError, did_you_mean
from cifarnet.core.files import ensure_temporary_folder
from cifarnet.settings.parser import add_pretrained, build_parser, check_evaluate
from commands.export_formats import FORMATS

IMAGES = (
    *("dataset", "data_dir", "labels", "test_fraction", "data_url"),
    *("limit_test", "skip_bad_images"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if a file could not be written or its answers differ from the
    network's, 2 for a wrong request."""
    return run_command(lambda: _export(*_parse(sys.argv[1:] if argv is None else argv)))


def _export(options: dict[str, Any], flags: dict[str, Any]) -> None:
    targets = _targets(_formats(options["format"]), Path(options["out"]))
    ensure_temporary_folder(next(iter(targets.values())).parent)
    from commands.exporting import run_export

    run_export(options, flags, targets)


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of this command, and the flags of the images that the user gave."""
    parser = build_parser(
        "Writes a trained model in other formats. Each file is read back and compared with the "
        "network on the test images of its training; give --dataset and --data_dir if they lie "
        "elsewhere now.",
        (*IMAGES, "evaluate"),
        defaults=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--snapshot",
        type=path_argument,
        metavar="PATH",
        help="Snapshot to export. Without --evaluate: the weights that its run evaluates.",
    )
    add_pretrained(what)
    parser.add_argument(
        "--format",
        default="safetensors",
        metavar="NAME[,NAME...]",
        help=f"What to write: {', '.join(FORMATS)}; several with commas (default: %(default)s).",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=".",
        metavar="FILE|FOLDER",
        help="File to write, or the folder to write into (default: this folder). Usual names: "
        f"{', '.join(form.file for form in FORMATS.values())}.",
    )
    parser.add_argument(
        "--metrics",
        type=path_argument,
        metavar="FILE",
        help="Take the accuracy, and the thresholds of a page, from this metrics.json of main.py "
        "or evaluate.py (default: from the run's history and its metrics.json).",
    )
    options = {"evaluate": None} | vars(parser.parse_args(argv))
    flags = {name: options.pop(name) for name in IMAGES if name in options}
    check_evaluate(options["evaluate"], options["pretrained"])
    if options["pretrained"] is None:
        check_snapshot(Path(options["snapshot"]))
    else:
        resolve_model_path(options["pretrained"])
    return options, flags


def _formats(text: str) -> list[str]:
    """The names in `text`, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in FORMATS:
            hint = did_you_mean(name, FORMATS)
            raise UserError(f"--format {name!r}: use {', '.join(FORMATS)}. {hint}".rstrip(". "))
        for package in FORMATS[name].packages:
            check_package(package, f"--format {name}")
    return names


def _targets(names: Sequence[str], out: Path) -> dict[str, Path]:
    """Where each format goes: to `out` itself if that is named as its file, else into it."""
    is_folder = os.path.isdir(out)  # noqa: PTH112, Path.is_dir can raise
    suffixes = {Path(FORMATS[name].file).suffix for name in names} - {""}
    if out.suffix in suffixes:
        if len(names) > 1 or is_folder:
            why = "is a folder" if is_folder else "is one file, for several formats"
            raise UserError(f"--out {out} {why}; name a {'file' if is_folder else 'folder'}")
        return {names[0]: out}
    if out.suffix and not is_folder:
        ends = " or ".join(sorted(suffixes))
        why = f"does not end in {ends}" if ends else f"has the suffix {out.suffix}"
        raise UserError(f"--out {out} is not a folder and {why}; choose another name")
    return {name: out / FORMATS[name].file for name in names}


if __name__ == "__main__":
    sys.exit(main())
