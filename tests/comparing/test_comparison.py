import csv
import re
import statistics

import pytest
from support.runs import leave_run, runs_of

from cifarnet.comparing.comparison import as_csv, as_text, compare


def test_settings_that_differ_are_shown_and_no_others(tmp_path):
    one = leave_run(tmp_path / "one", lr=0.1)
    other = leave_run(tmp_path / "other", (0.4, 0.9), lr=0.2, dataset_name="a, b=c", plot_freq=3)
    comparison = compare(runs_of(one, other))
    assert comparison.differing == ("epochs", "lr")  # the others do not change the result
    text = as_text(comparison, 120)
    results = r"^one +60\.00% +70\.00% +2 +0:00:12 +0 +1,234 +3 of 3 +test +3 +0\.1$"
    assert re.search(results, text, re.MULTILINE), text


def test_seeds_become_mean_deviation_and_count(tmp_path):
    for seed, accuracy in {1: 0.60, 2: 0.64, 3: 0.68}.items():
        leave_run(tmp_path / f"seed{seed}", (0.5, accuracy), seed=seed)
    leave_run(tmp_path / "x_again", (0.5, 0.1), seed=3)  # the same seed is not one more
    leave_run(tmp_path / "x_shorter", (0.5,), seed=4, epochs=2)  # still under way
    comparison = compare(runs_of(*sorted(tmp_path.iterdir())))
    rows = {row["run"]: row for row in csv.DictReader(as_csv(comparison).splitlines())}
    assert {name: row["runs"] for name, row in rows.items()} == {
        **{"seed1 and 2 more": "3", "x_again": "1", "x_shorter": "1"}
    }
    seeds = rows["seed1 and 2 more"]
    assert float(seeds["top1"]) == pytest.approx(0.64)
    assert float(seeds["top1_deviation"]) == pytest.approx(statistics.stdev((0.60, 0.64, 0.68)))
    assert seeds["seed"] == "1, 2, 3"
    assert "64.00% ± 4.00%" in as_text(comparison, 120)
