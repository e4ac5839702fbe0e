"""Compares runs: settings that differ, and results. `python compare.py runs/a runs/b`."""

import shutil
import sys
from collections.abc import Sequence

from cifarnet.comparing.comparison import CSV_BEGINS, PAGE_BEGINS, as_csv, as_text, compare
from cifarnet.comparing.disagreements import Disagreements, disagreements
from cifarnet.comparing.past_runs import PastRun, read_runs
from cifarnet.core.arguments import path_argument
from cifarnet.core.command import run_command
from cifarnet.core.errors import UserError, printable
from cifarnet.core.files import check_replaceable, write_named
from cifarnet.core.log import print_line
from cifarnet.settings.parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 where a file cannot be written, 2 for a wrong request."""
    return run_command(lambda: _compare(sys.argv[1:] if argv is None else argv))


def _compare(argv: Sequence[str]) -> None:
    parser = build_parser(
        "Compares runs: the settings that differ, and the results. Runs that differ only in their "
        "seed, and are evaluated in the same way, become one line: mean, deviation and count. "
        "A run may still be running.",
        [],
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=path_argument,
        help="A log (.log), a history (.csv), a snapshot (.pth), the --run_dir of a run, a folder "
        "in results/, or a folder of logs.",
    )
    for flag, what in (("--csv", "the table"), ("--html", "the table and the curves")):
        parser.add_argument(
            flag, type=path_argument, metavar="FILE", help=f"Write {what} to this file."
        )
    parser.add_argument(
        "--data_dir",
        type=path_argument,
        metavar="DIR",
        help="With --html: show the test images of two runs from this --data_dir, not "
        "from that of the runs.",
    )
    options = parser.parse_args(argv)
    check_replaceable(options.csv, "--csv", "a comparison", CSV_BEGINS)
    check_replaceable(options.html, "--html", "a comparison", PAGE_BEGINS)
    runs, messages = read_runs(options.runs)
    for message in messages:
        print(printable(message), file=sys.stderr)
    if not runs:
        raise UserError("no run is named; name a log, a history, a snapshot or a folder")
    comparison = compare(runs)
    print(as_text(comparison, shutil.get_terminal_size((120, 0)).columns))
    notes = (comparison.warning, comparison.tested_elsewhere, _test(runs))
    notes = [note for note in notes if note]
    for note in notes:
        print()
        print_line(note)
    if options.csv is not None:
        _write(options.csv, "--csv", as_csv(comparison))
    if options.html is not None:
        from cifarnet.comparing.page import comparison_page

        differing = _disagreements([run for run in runs if run.predictions], options.data_dir)
        page = comparison_page(comparison, notes, differing=differing)
        _write(options.html, "--html", page)


def _test(runs: Sequence[PastRun]) -> str:
    """McNemar's test on two runs with predictions, in words, or why it is left out."""
    predicted = [run for run in runs if run.predictions]
    if len(predicted) == 2:
        from cifarnet.comparing.mcnemar import mcnemar  # scipy takes a second to import

        return mcnemar(*predicted)
    if len(runs) == 2:
        names = " and ".join(run.name for run in runs if run not in predicted)
        return (
            f"McNemar's test: left out, as there is no predictions.csv of {names}; "
            f"evaluate.py writes one"
        )
    return "McNemar's test: left out, as it compares two runs; name two" if len(runs) > 2 else ""


def _disagreements(runs: Sequence[PastRun], data_dir: str | None) -> Disagreements:
    """The images that only one of the `runs`, if these are two, predicts correctly."""
    groups = disagreements(*runs) if len(runs) == 2 else []
    if not any(group.mistakes for group in groups):
        return Disagreements(groups)
    from commands.run_pictures import run_pictures  # torch takes seconds to import

    try:
        return Disagreements(groups, run_pictures(runs, groups, data_dir))
    except UserError as problem:
        print(f"the page shows no images: {problem}", file=sys.stderr)
        return Disagreements(groups, no_pictures=str(problem))


def _write(path: str, flag: str, text: str) -> None:
    write_named(path, flag, text)
    print_line(f"written to {path}")


if __name__ == "__main__":
    sys.exit(main())
