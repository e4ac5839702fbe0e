"""Compares runs: settings that differ, and results. `python compare.py runs/a runs/b`."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cifarnet.core.commandline import path_argument, run_command
from cifarnet.core.errors import UserError, printable
from cifarnet.core.files import naming_failures, write_text
from cifarnet.core.log import say
from cifarnet.reporting.comparison import as_csv, as_text, compare, mcnemar
from cifarnet.reporting.past_runs import read_runs
from cifarnet.settings.parser import build_parser

CSV_BEGINS, PAGE_BEGINS = "run,runs,", "<!doctype html><!-- comparison of runs -->"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 where a file cannot be written, 2 for a wrong request."""
    return run_command(lambda: _compare(sys.argv[1:] if argv is None else argv))


def _compare(argv: Sequence[str]) -> None:
    parser = build_parser(
        "Compares runs: the settings that differ, and the results. Runs that differ only in their "
        "seed become one line: mean, deviation and count. A run may be under way.",
        [],
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=path_argument,
        help="a log (.log), a history (.csv), a snapshot (.pth), the --run_dir of a run, a folder "
        "in results/, or a folder of logs",
    )
    for kind in ("csv", "html"):
        what = {"csv": "the table", "html": "the table and the curves"}[kind]
        parser.add_argument(
            f"--{kind}", type=path_argument, metavar="FILE", help=f"write {what} to this file"
        )
    given = parser.parse_args(argv)
    for flag, begins in (("csv", CSV_BEGINS), ("html", PAGE_BEGINS)):
        if getattr(given, flag) is not None:
            _check_place(Path(getattr(given, flag)), f"--{flag}", begins)
    runs, passed_over = read_runs(given.runs)
    for name in passed_over:
        print(printable(f"passed over: {name} is no log, history or snapshot"), file=sys.stderr)
    if not runs:
        raise UserError("no run is named; name a log, a history, a snapshot or a folder")
    found = compare(runs)
    print(as_text(found, shutil.get_terminal_size((120, 0)).columns))
    predicted = [run for run in runs if run.predictions]
    tested = mcnemar(*predicted) if len(predicted) == 2 else ""
    if tested:
        print()
        say(tested)
    if given.csv is not None:
        _write(Path(given.csv), "--csv", as_csv(found))
    if given.html is not None:
        from cifarnet.reporting.comparison_page import page

        _write(Path(given.html), "--html", page(found, PAGE_BEGINS, tested))


def _check_place(path: Path, flag: str, begins: str) -> None:
    """Raises `UserError` if the file `path` is no comparison: a history must not be replaced."""
    try:
        there = path.read_bytes()[: len(begins)]
    except FileNotFoundError:
        return
    except OSError as problem:
        raise UserError(f"{flag} {path}: {problem.strerror}; name another file") from None
    if there != begins.encode():
        raise UserError(f"{flag} {path} is there already, and no comparison; name another file")


def _write(path: Path, flag: str, text: str) -> None:
    with naming_failures(flag, path):
        write_text(path, text)
    say(f"written to {path}")


if __name__ == "__main__":
    sys.exit(main())
