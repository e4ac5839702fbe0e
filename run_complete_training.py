"""`main.py` with everything switched on; any flag given here is passed on and wins."""

import sys
from collections.abc import Sequence

import main as training

EVERYTHING = ("--amp", "--save_best", "--plot_training", "--plot_evaluation")


def main(argv: Sequence[str] | None = None) -> int:
    """`main.main` with `EVERYTHING` before `argv`; its exit codes."""
    return training.main([*EVERYTHING, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
