"""`main.py --amp --save_best`; a recipe or any flag given here wins."""

import sys
from collections.abc import Sequence

import main as training

PRESETS = {"amp": True, "save_best": True}


def main(argv: Sequence[str] | None = None) -> int:
    """`main.main` with `PRESETS`; its exit codes."""
    return training.main(argv, PRESETS)


if __name__ == "__main__":
    sys.exit(main())
