"""Compares runs of main.py with many settings: `python sweep.py recipes/sweep_digits.toml`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cifarnet.comparing.comparison import PAGE_BEGINS
from cifarnet.core.arguments import Parser, check_package, path_argument
from cifarnet.core.command import run_command
from cifarnet.core.errors import UserError
from cifarnet.core.files import check_replaceable
from commands.sweep_file import read_sweep


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if a trial failed, 2 for a wrong request, 130 after Ctrl-C."""
    return run_command(lambda: _sweep(sys.argv[1:] if argv is None else argv))


def _sweep(argv: Sequence[str]) -> None:
    parser = Parser(
        description="Runs main.py with each setting of a sweep, or searches for good ones, and "
        "prints the table of compare.py, sorted by validation accuracy. Repeat the command to "
        "continue after a stop, or to let several processes share the work. See docs/sweep.md.",
        allow_abbrev=False,
    )
    parser.add_argument("sweep", type=path_argument, metavar="SWEEP.toml", help="The sweep file.")
    parser.add_argument(
        "--sweep_dir",
        type=path_argument,
        metavar="DIR",
        help="Folder of the study and of all runs (default: sweeps/ and the name of the file).",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="Runs at a time (default: %(default)s)."
    )
    parser.add_argument(
        "--html",
        type=path_argument,
        metavar="FILE",
        help="Write table, curves, charts of the settings and their importances to this file.",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="Print the commands, and estimate the time, but run nothing.",
    )
    instead.add_argument(
        "--table", action="store_true", help="Print the table of the runs so far, but run nothing."
    )
    options = parser.parse_args(argv)
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs} is not a number of runs; use 1 or more")
    check_replaceable(options.html, "--html", "a comparison", PAGE_BEGINS)
    sweep = read_sweep(Path(options.sweep))
    check_package("optuna.storages.journal", "sweep.py")  # missing in old versions
    folder = Path(options.sweep_dir or Path("sweeps") / Path(options.sweep).stem)
    if options.dry_run:
        from commands.sweep_plan import show_plan

        show_plan(sweep, folder)
    else:
        from commands.sweeping import run_sweep

        run_sweep(sweep, folder, options)


if __name__ == "__main__":
    sys.exit(main())
