import csv
import json

import pytest
from support.runs import leave_run

from cifarnet.comparing.run_files import read_history, read_predictions, read_record
from cifarnet.core.errors import UserError


@pytest.fixture
def record(tmp_path):
    return next(leave_run(tmp_path / "run").glob("log/*.run.json"))


def edited(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return path


def test_a_record_holds_what_a_comparison_shows(record):
    run = read_record(edited(record, settings={"lr": 0.2, "flag_of_another_version": 1}))
    assert (run.run_id, run.settings) == ("run", {"lr": 0.2})
    assert (run.machine, run.dataset, run.test_images) == ("cpu (a machine)", "bars", 40)
    assert (run.parameters, run.epochs_done, run.top1) == (1234, 3, 0.6)
    run = read_record(edited(record, device=None, dataset=None, model=None, figures=None))
    assert (run.machine, run.dataset, run.parameters, run.top1) == (None,) * 4


@pytest.mark.parametrize(
    "damage",
    [
        *({"format": 2}, {"settings": None}, {"device": "cpu"}, {"epochs_done": None}),
        *({"model": {"parameters": "many"}}, {"figures": {"last": [1]}}),
        *(b"", b"[]", b"[" * 10_000, b"{}", b"\xff"),
    ],
)
def test_another_record_is_refused(record, damage):
    if isinstance(damage, dict):
        edited(record, **damage)
    else:
        record.write_bytes(damage)
    with pytest.raises(UserError, match=r"is not a run\.json of this version"):
        read_record(record)


def test_a_history_gives_rows_and_leaves_out_one_that_is_being_written(tmp_path):
    path = next(leave_run(tmp_path / "run").glob("log/*.csv"))
    path.write_text(path.read_text() + "4,0.5,0.", encoding="utf-8-sig")  # as Excel saves it
    rows = read_history(path)
    assert [(row.epoch, row.test_accuracy) for row in rows] == [(1, 0.5), (2, 0.7), (3, 0.6)]
    assert (rows[0].val_loss, rows[0].skipped_steps) == (None, 0)


@pytest.mark.parametrize(
    ("former", "new", "words"),
    [
        (",train_loss", ",loss", "lacks the columns train_loss"),
        ("\n2,0.5,", "\n,0.5,", "is not a history"),  # an epoch has a number
    ],
)
def test_another_history_is_refused(tmp_path, former, new, words):
    path = next(leave_run(tmp_path / "run").glob("log/*.csv"))
    path.write_text(path.read_text().replace(former, new))
    with pytest.raises(UserError, match=words):
        read_history(path)


def test_predictions_name_any_file(tmp_path):
    names = ["a\u2028b.png", "a\x0bb.png", "one\ntwo.png", 'a "b", c.png']
    path = tmp_path / "predictions.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "true", "predicted", "probability_true", "probability_predicted"])
        table.writerows([name, "cat", "dog", 0.2, 0.8] for name in names)
    assert list(read_predictions(path)) == names
