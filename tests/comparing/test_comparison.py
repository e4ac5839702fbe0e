import csv
import re
import statistics

import pytest
from support.runs import leave_run

from cifarnet.comparing.comparison import as_csv, as_text, compare
from cifarnet.comparing.past_runs import read_runs


def compared(*folders):
    return compare(read_runs([str(folder) for folder in folders])[0])


def table(comparison) -> dict[str, dict[str, str]]:
    return {row["run"]: row for row in csv.DictReader(as_csv(comparison).splitlines())}


def test_settings_that_differ_are_shown_and_no_others(tmp_path):
    one = leave_run(tmp_path / "one", lr=0.1)
    other = leave_run(tmp_path / "other", (0.4, 0.9), lr=0.2, dataset_name="a, b=c", plot_freq=3)
    comparison = compared(one, other)
    assert comparison.differing == ("epochs", "lr")  # the others do not change the result
    text = as_text(comparison, 120)
    assert re.search(r"^one +3 +0\.1 +60\.00% +70\.00% +2 +0:00:12 +0 ", text, re.MULTILINE), text
    assert "3 of 3" in text


def test_seeds_become_mean_deviation_and_count(tmp_path):
    for seed, accuracy in {1: 0.60, 2: 0.64, 3: 0.68}.items():
        leave_run(tmp_path / f"seed{seed}", (0.5, accuracy), seed=seed)
    leave_run(tmp_path / "x_again", (0.5, 0.1), seed=3)  # the same seed is not one more
    leave_run(tmp_path / "x_shorter", (0.5,), seed=4, epochs=2)  # still under way
    comparison = compared(*sorted(tmp_path.iterdir()))
    rows = table(comparison)
    assert {name: row["runs"] for name, row in rows.items()} == {
        **{"seed1 and 2 more": "3", "x_again": "1", "x_shorter": "1"}
    }
    seeds = rows["seed1 and 2 more"]
    assert float(seeds["top1"]) == pytest.approx(0.64)
    assert float(seeds["top1_deviation"]) == pytest.approx(statistics.stdev((0.60, 0.64, 0.68)))
    assert seeds["seed"] == "1, 2, 3"
    assert "64.00% ± 4.00%" in as_text(comparison, 120)
