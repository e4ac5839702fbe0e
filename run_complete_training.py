"""`main.py` with everything switched on; a recipe or any flag given here wins."""

import sys
from collections.abc import Sequence

import main as training

EVERYTHING = ("--amp", "--save_best", "--plot_training", "--plot_evaluation")


def main(argv: Sequence[str] | None = None) -> int:
    """`main.main` with `EVERYTHING` preset; its exit codes."""
    return training.main(argv, EVERYTHING)


if __name__ == "__main__":
    sys.exit(main())
