"""Measures speed on this machine: `python bench.py [--inference] [--json FILE]`.

Of training, it compares main.py with a plain loop and with the ceiling, the machine's matrix
products. The main rows run in three rounds, the others in the first one only, and not with
--quick. The flags are read before torch is imported.
"""

import argparse
import sys
from collections.abc import Sequence

from cifarnet.checkpoints.paths import resolve_model_path, split_names
from cifarnet.core.arguments import Parser, check_package, path_argument
from cifarnet.core.command import run_command
from cifarnet.core.errors import UserError
from cifarnet.core.files import check_replaceable
from cifarnet.settings.parser import add_pretrained
from commands.bench_rows import chosen_rows
from commands.export_formats import ONNX_PACKAGES

EXTRAS = {  # what is measured instead of the first table, and the flags that change it
    "profile": (),
    "networks": ("quick", "only"),
    "inference": ("quick", "compiled"),
    "ranks": (),
}

JSON_BEGINS = '{\n  "machine"'  # the first characters of a file of --json

SWITCHES = {
    "quick": "One round of the main rows: about two minutes on two cores.",
    "compiled": "Measure torch.compile too: a minute per row.",
    "profile": "Instead, show the twenty costliest operations of a training step.",
    "networks": "Instead, measure training steps of LiteNet, and of CIFARNet with each attention "
    "and in other sizes.",
    "inference": "Instead, measure inference: in PyTorch and as ONNX files, in turns.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if a measurement failed, 2 for a wrong request, 130 after
    Ctrl-C."""
    options = argparse.Namespace()

    def read_flags() -> None:
        _parse(sys.argv[1:] if argv is None else argv, options)
        check_request(options)

    if code := run_command(read_flags):
        return code
    if options.child:
        from commands.benching import end_with_parent

        end_with_parent()
    if options.child == "ranks":
        from cifarnet.core.ranks import run_on_ranks
        from commands.bench_training import measure_ranks

        return run_on_ranks(lambda group: measure_ranks(group, options.device))
    return run_command(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> None:
    from commands.benching import run_bench, run_child

    if options.child:
        run_child(options.child, options.device)
    else:
        run_bench(options)


def _parse(argv: Sequence[str], options: argparse.Namespace | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Measures the speed of training, or of --inference, on this machine."
    )
    for name, text in SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument(
        "--json", type=path_argument, metavar="FILE", help="Write the figures to this file too."
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="Only measurements with TEXT in their name."
    )
    parser.add_argument(
        "--ranks",
        metavar="N,N",
        help="Instead, measure training with each of these numbers of processes.",
    )
    add_pretrained(
        parser,
        several="Several, separated by commas, are measured in turn.",
        note="For --inference (default: lite).",
    )
    parser.add_argument(
        "--data_dir",
        type=path_argument,
        metavar="DIR",
        help="Images for --inference, to measure the accuracy of each form too.",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv, options)


def check_request(options: argparse.Namespace) -> None:
    """Checks the flags. Adds `counts`, the numbers of --ranks, and `names`, those of the rows.
    Raises `UserError`."""
    asked = {name: getattr(options, name) for name in (*EXTRAS, "quick", "compiled", "only")}
    instead = [name for name in EXTRAS if asked[name]]
    if len(instead) > 1:
        raise UserError(f"--{instead[0]} and --{instead[1]} are two measurements; choose one")
    for name in () if not instead else ("quick", "compiled", "only"):
        if asked[name] and name not in EXTRAS[instead[0]]:
            raise UserError(f"--{name} has no effect with --{instead[0]}; remove it")
    counts = options.ranks.split(",") if options.ranks else []
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise UserError(f"--ranks {options.ranks}: name numbers of processes, as in 1,2")
    if options.json and (options.profile or options.ranks):
        raise UserError("--profile and --ranks write no --json file; remove --json")
    check_replaceable(options.json, "--json", "a file of bench.py", JSON_BEGINS)
    options.counts = [int(count) for count in counts]
    options.names = chosen_rows(options)
    if not options.inference and (options.pretrained or options.data_dir):
        raise UserError("--pretrained and --data_dir are for --inference; add it")
    if options.inference:
        options.pretrained = options.pretrained or "lite"
        for name in split_names(options.pretrained):
            resolve_model_path(name)
        for package in ONNX_PACKAGES:
            check_package(package, "--inference")


if __name__ == "__main__":
    sys.exit(main())
