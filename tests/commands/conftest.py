from pathlib import Path

import pytest
from support.sweeps import STUB

from commands import sweeping


@pytest.fixture
def sweep(command, monkeypatch):
    """Writes sweep.toml, and runs sweep.py on it: `sweep(text, *flags)` -> `Outcome`."""
    monkeypatch.setattr(sweeping, "MAIN", STUB)
    monkeypatch.setattr(sweeping, "POLL", 0.05)
    monkeypatch.setenv("COLUMNS", "300")  # the table in one block

    def run(text, *flags):
        Path("sweep.toml").write_text(text)
        return command("sweep", "sweep.toml", *flags)

    return run
