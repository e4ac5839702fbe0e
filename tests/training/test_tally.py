import os
import subprocess
import sys
from pathlib import Path

CODE = """
from cifarnet.core.launch import ALONE
from cifarnet.training.tally import progress_bar
with progress_bar(4, "epoch 1/2", ALONE) as bar:
    bar.update(2)
    bar.refresh()
"""


def test_the_bar_shows_on_a_terminal_without_a_size():
    """As that of a container that nobody is attached to."""
    terminal, slave = os.openpty()
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", CODE], stderr=slave, cwd=root, check=True)
    assert b"epoch 1/2  50%" in os.read(terminal, 10_000)
    os.close(terminal)
    os.close(slave)
