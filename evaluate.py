"""Evaluates a trained model: `python evaluate.py --snapshot PATH`. The request is checked before
torch is imported, which takes seconds."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.paths import LAST, check_snapshot, resolve_model_path, split_names
from cifarnet.core.arguments import path_argument
from cifarnet.core.command import run_command
from cifarnet.core.errors import UserError
from cifarnet.core.files import ensure_temporary_folder, existing_directory
from cifarnet.settings import Settings
from cifarnet.settings.evaluation import VALIDATION
from cifarnet.settings.output import SNAPSHOTS
from cifarnet.settings.parser import ENSEMBLE, add_pretrained, add_tta, build_parser, check_evaluate

FLAGS = (
    *("dataset", "data_dir", "labels", "test_fraction", "dataset_name", "data_url"),
    *("limit_test", "skip_bad_images"),
    *("batch_size", "amp", "amp_dtype", "device", "keep_memory", "evaluate"),
    *("plot_evaluation", "report", "run_dir", "plot_dir"),
)
OPTIONS = ("snapshot", "pretrained", "tta", "evaluate", "calibrate", "corruptions")
TEXTS = {
    "batch_size": "Images to evaluate at a time, at most 512.",
    "run_dir": "Folder of the run: its snapshots_complete and plots_complete are used.",
    "plot_dir": "Folder to write to (default: plots_complete, in --run_dir).",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if the files cannot be written, 2 for a wrong request."""
    return run_command(lambda: _evaluate(*_parse(sys.argv[1:] if argv is None else argv)))


def _evaluate(options: dict[str, Any], flags: dict[str, Any]) -> None:
    ensure_temporary_folder(Settings.from_flags(**flags).output.folder("plot_dir"))
    from commands.evaluation import run_evaluation

    run_evaluation(options, flags)


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of this command, and the flags that the user gave. Raises `UserError`. The
    options have the `names` of --pretrained, and the `command` as it was typed."""
    parser = build_parser(
        "Evaluates a snapshot or a weights file, and writes a report. The flags of the data set "
        "and its split, image size, batch size, --amp, --evaluate and --skip_bad_images are those "
        "of the training, unless given here. Other flags have main.py's defaults.",
        FLAGS,
        defaults=False,
        texts=TEXTS,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--snapshot",
        type=path_argument,
        metavar="PATH",
        help="Snapshot, with its run's settings (with --run_dir alone: the run's last.pth).",
    )
    note = (
        "The settings are those of the first. Add --data_dir if the images have moved, and with "
        "an exported file."
    )
    add_pretrained(what, several=ENSEMBLE, note=note)
    add_tta(parser)
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="Also measure the accuracy on corrupted test images: noise, blur, weather, JPEG "
        "compression and others, each at five severities, as in CIFAR-10-C. Each "
        "image is evaluated 79 times.",  # fifteen corruptions five times, three of JPEG, and clean
    )
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const=VALIDATION,
        type=path_argument,
        metavar="SHARE|FOLDER",
        help="First fit the temperature of one network, and keep it in its file: on the validation "
        "images of its run; on a share of the test images, such as 0.2, which the report leaves "
        "out; or on other images in a folder with a folder for each class.",
    )
    flags = vars(parser.parse_args(argv))
    options = {name: flags.pop(name, None) for name in OPTIONS}
    options |= {"names": [], "command": shlex.join(["evaluate.py", *argv])}
    options["calibrate"] = _calibration_images(options["calibrate"])
    check_evaluate(options["evaluate"], options["pretrained"])
    if options["pretrained"] is not None:
        options["names"] = names = split_names(options["pretrained"])
        for name in names:
            path = resolve_model_path(name)
            if options["calibrate"] and (len(names) > 1 or path.suffix == ".onnx"):
                raise UserError(
                    f"--calibrate takes one network, as a weights file or a snapshot, not {name}; "
                    f"calibrate each network before the export or the ensemble"
                )
        return options, flags
    if options["snapshot"] is None:
        if "run_dir" not in flags:
            raise UserError("name a model: --snapshot PATH, --pretrained NAME or --run_dir DIR")
        options["snapshot"] = str(Path(flags["run_dir"]) / SNAPSHOTS / LAST)
    check_snapshot(Path(options["snapshot"]))
    return options, flags


def _calibration_images(text: object) -> object:
    """What --calibrate names: a share of the test images, a folder, or `VALIDATION`. Raises
    `UserError`."""
    if text is None or text is VALIDATION:
        return text
    try:
        share = float(text)
    except ValueError:
        return str(existing_directory(text, "--calibrate"))
    if not 0 < share < 1:
        raise UserError(
            f"--calibrate {text} is not a share in (0, 1); use 0.2, or ./{text} for a folder"
        )
    return share


if __name__ == "__main__":
    sys.exit(main())
