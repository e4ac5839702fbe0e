"""Sweeps of a stub that stands in for main.py."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
STUB = ROOT / "tests" / "support" / "stub_main.py"
FLAGS = "[flags]\ndataset = 'digits'\nval_fraction = 0.5\nepochs = 3\n"
GRID = f"seeds = [1, 2]\n{FLAGS}[grid]\nlr = [0.2, 0.6, 0.4]\n"
ALONE = f"""  # the command in a process of its own, with the stub
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}]
import commands.sweeping, sweep
commands.sweeping.MAIN, commands.sweeping.POLL = Path({str(STUB)!r}), 0.05
sys.exit(sweep.main(["sweep.toml"]))
"""


def starts() -> dict[str, list[int]]:
    """The epochs that each start of a run found done, by the folder of the run."""
    files = sorted(Path("sweeps/sweep").glob("trial-*/starts.txt"))
    return {path.parent.name: [int(line) for line in path.read_text().split()] for path in files}
