"""Classifies images: `python predict.py --pretrained long photo.jpg holidays/`. The request is
checked before torch is imported, which takes seconds."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.paths import resolve_model_path, split_names
from cifarnet.core.arguments import check_package, path_argument
from cifarnet.core.command import run_command
from cifarnet.core.errors import UserError
from cifarnet.core.files import check_replaceable, ensure_temporary_folder
from cifarnet.settings import Settings
from cifarnet.settings.parser import ENSEMBLE, add_pretrained, add_tta, build_parser
from cifarnet.settings.training import BATCH_SIZE

CSV_BEGINS = "image,predicted,probability,error,"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if some images could not be read or some files not written; 2 if
    no image could be read, or for a wrong request."""
    return run_command(lambda: _predict(*_parse(sys.argv[1:] if argv is None else argv)))


def _predict(options: dict[str, Any], settings: Settings) -> None:
    from commands.predicting import run_prediction

    run_prediction(options, settings)


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], Settings]:
    """The options of this command, with `names` of the models; and the settings."""
    texts = {"batch_size": f"Images to classify at a time, at most {BATCH_SIZE} (the default)."}
    parser = build_parser("Classifies images.", ("batch_size", "device"), texts=texts)
    parser.add_argument(
        "images",
        type=path_argument,
        nargs="+",
        metavar="IMAGE",
        help="Image file, or a folder to search for images.",
    )
    add_pretrained(parser, several=ENSEMBLE, default="lite", note="Default: lite.")
    add_tta(parser)
    parser.add_argument(
        "--top_k", type=int, default=3, metavar="N", help="Classes to name (default: %(default)s)."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print one line of JSON per image, not a table."
    )
    parser.add_argument(
        "--csv",
        type=path_argument,
        metavar="FILE",
        help="Also write the probabilities of all classes to this file, one row per image.",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="Answer `unsure` where the highest probability is below P, such as 0.8.",
    )
    parser.add_argument(
        "--explain",
        type=path_argument,
        metavar="DIR",
        help="Also write each image into this folder with the class activation maps of its two "
        "most probable classes: which parts raise and lower their logits.",
    )
    options = vars(parser.parse_args(argv))
    if options["top_k"] < 1:
        raise UserError(f"--top_k {options['top_k']} is out of range; name at least one class")
    check_replaceable(options["csv"], "--csv", "a table of predict.py", CSV_BEGINS)
    if options["explain"]:
        ensure_temporary_folder(Path(options["explain"]))
        check_package("matplotlib.figure", "--explain", "requirements.txt")
    threshold = options["threshold"]
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold:g} is not in [0, 1]; use 0.8, for example")
    flags = {name: options[name] for name in ("batch_size", "device") if name in options}
    settings = Settings.from_flags(**flags)
    options["names"] = split_names(options["pretrained"])
    for name in options["names"]:
        resolve_model_path(name)
    return options, settings


if __name__ == "__main__":
    sys.exit(main())
