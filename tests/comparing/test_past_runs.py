"""Which runs a name means, and which files are theirs."""

import shutil

import pytest
from support.runs import leave_predictions, leave_run, runs_of, write_metrics
from support.snapshots import make_row, make_snapshot

from cifarnet.checkpoints.snapshots import pack, write_snapshot
from cifarnet.comparing.comparison import compare
from cifarnet.comparing.mcnemar import mcnemar
from cifarnet.comparing.past_runs import read_runs
from cifarnet.core.errors import UserError

SECOND = "training_complete_20260102-000000"


def log_of(run):
    return next(run.glob("log/*.log"))


def leave_result(folder, seed=42, **report):
    """Leaves a run as in results/, with `report` in its metrics.json."""
    run = leave_run(folder.parent / f"run of {folder.name}", seed=seed)
    write_metrics(run, {"epoch": 3, "top1": 0.8, "run": {"id": None}} | report)
    (run / "plots_complete").rename(folder)
    log_of(run).with_suffix(".csv").rename(folder / "history.csv")
    log_of(run).with_suffix(".run.json").rename(folder / "run.json")
    return folder


def test_a_run_is_one_by_whatever_name(tmp_path):
    run = leave_run(tmp_path / "run")
    log = log_of(run)
    names = (run, log, log.with_suffix(".csv"), log.parent)
    for group in (*([name] for name in names), names):
        (past,) = runs_of(*group)
        assert (past.epochs_done, past.top1, past.record.run_id) == (3, 0.6, "run")


def test_a_history_alone_has_no_settings(tmp_path):
    shutil.copy(log_of(leave_run(tmp_path / "run")).with_suffix(".csv"), tmp_path / "lr0.1.csv")
    (run,) = runs_of(tmp_path / "lr0.1.csv")
    assert (run.name, run.epochs_done, run.top1, run.record.settings) == ("lr0.1", 3, 0.6, {})


def test_a_log_without_its_record_is_refused_and_in_a_folder_skipped(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "old.log").touch()
    with pytest.raises(UserError, match=r"has neither old\.run\.json nor old\.csv beside it"):
        runs_of(logs / "old.log")
    runs, (message,) = read_runs([str(logs), str(leave_run(tmp_path / "run"))])
    assert [run.name for run in runs] == ["run"]
    assert message.startswith("skipped: ") and message.endswith(" no .csv beside them: 1")


@pytest.mark.parametrize("name", ["run", "run/log", "LOG"])
def test_a_log_without_its_record_is_read_by_its_history(tmp_path, name):
    log = log_of(leave_run(tmp_path / "run"))
    log.with_suffix(".run.json").unlink()
    (run,), (message,) = read_runs([str(log if name == "LOG" else tmp_path / name)])
    assert (run.epochs_done, run.top1, run.record.settings) == (3, 0.6, {})
    assert "has no .run.json beside it: only its history is shown" in message


def test_the_logs_of_a_resumed_run_are_one_run(tmp_path):
    """Epoch 2 ran again after a crash, so the first history is not a part of the second."""
    folder = tmp_path / "run"
    leave_run(folder, (0.5, 0.6), epochs=4)
    leave_run(folder, (0.5, 0.7, 0.8, 0.9), SECOND)
    leave_run(folder, (0.1,), "training_complete_20260103-000000", {"run_id": "other"})
    for names in ([folder / "log"], sorted(folder.glob("log/*.log"), reverse=True)):
        by_run = {run.record.run_id: run.epochs_done for run in runs_of(*names)}
        assert by_run == {"run": 4, "other": 1}
    assert [run.epochs_done for run in runs_of(folder)] == [1]  # the newest run


@pytest.mark.parametrize(
    ("first", "second"),
    [("2026-10-25T02:50:00+0200", "2026-10-25T02:10:00+0100"),  # the clock goes back an hour
     ("2026-01-01T20:00:00+0100", "2026-01-01T19:30:00+0000")],
    ids=["summer time ends", "another time zone"],
)  # fmt: skip
def test_the_latest_run_is_not_the_one_of_the_latest_local_time(tmp_path, first, second):
    for run_id in ("same", "other"):
        folder = tmp_path / run_id
        leave_run(folder, (0.5, 0.6), SECOND, {"started": first, "run_id": "same"}, epochs=4)
        leave_run(folder, (0.7, 0.8, 0.9), record={"started": second, "run_id": run_id}, epochs=4)
        for name in [folder] if run_id == "other" else [folder, folder / "log"]:
            assert [run.epochs_done for run in runs_of(name)] == [3]


def test_a_run_that_continues_another_is_the_later_one_though_the_clock_went_back(tmp_path):
    leave_run(tmp_path / "run", (0.5, 0.6), SECOND, {"started": "2026-01-02T00:00:00+0000"})
    leave_run(tmp_path / "run", (0.5, 0.6, 0.7), record={"started": "2026-01-01T00:00:00+0000"})
    for name in ("run", "run/log"):
        assert [run.epochs_done for run in runs_of(tmp_path / name)] == [3]


def test_a_run_resumed_in_another_folder_is_one_run(tmp_path):
    begun = leave_run(tmp_path / "begun", (0.5, 0.6), epochs=4)
    record = {"run_id": "begun"}
    leave_run(tmp_path / "resumed", (0.5, 0.6, 0.8, 0.9), record=record, epochs=4)
    leave_run(tmp_path / "branch", (0.5, 0.7, 0.8), record=record, epochs=4)
    names = sorted(tmp_path.iterdir())
    assert [run.name for run in runs_of(*names)] == ["branch", "resumed"]
    assert [run.name for run in runs_of(begun)] == ["begun"]


def test_the_best_epoch_is_one_that_is_comparable(tmp_path):
    leave_run(tmp_path / "run", (0.9, 0.5, 0.6), record={"comparable_after": 1})
    write_snapshot(
        pack(
            make_snapshot(
                2,
                history=[make_row(1, test_accuracy=0.9), make_row(2, test_accuracy=0.5)],
                comparable_after=1,
            )
        ),
        tmp_path / "a.pth",
    )
    assert [run.best.epoch for run in runs_of(tmp_path / "run", tmp_path / "a.pth")] == [3, 2]


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = ("x/y/seed", "y/x/seed")
    for folder in folders:
        leave_run(tmp_path / folder)
        write_snapshot(pack(make_snapshot()), tmp_path / folder / "last.pth")
    for file in ("", "last.pth"):
        names = [run.name for run in runs_of(*(tmp_path / folder / file for folder in folders))]
        assert all(folder in name for folder, name in zip(folders, names, strict=True))


def test_a_snapshot_has_settings_history_and_parameters(tmp_path):
    history = [make_row(1, test_accuracy=0.5), make_row(3, val_accuracy=0.25)]
    snapshot = make_snapshot(3, settings={"epochs": 20}, history=history)
    write_snapshot(pack(snapshot), tmp_path / "a.pth")
    (run,) = runs_of(tmp_path / "a.pth")
    assert (run.record.settings["epochs"], run.epochs_done, run.record.parameters) == (
        20,
        3,
        171_682,
    )
    assert (run.record.dataset, run.best.epoch, run.best_on) == ("pictures", 3, "val")


def test_a_run_under_way(tmp_path):
    (run,) = runs_of(leave_run(tmp_path / "run", (0.5, 0.7), epochs=9))
    assert (run.epochs_done, run.top1, run.seconds) == (2, 0.7, 8)
    (waiting,) = runs_of(leave_run(tmp_path / "waiting", (), epochs=9))
    assert (waiting.epochs_done, waiting.top1, waiting.best) == (0, None, None)


@pytest.mark.parametrize(
    "change",  # in reports that evaluate.py writes into the folder of a run
    [
        *({}, {"tta": "flip"}, {"images": 20}, {"weights": "ema"}, {"dataset": "discs"}),
        *({"run": {"id": name, "settings": {}}} for name in ("another", None)),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_report_belongs_to_the_run_that_it_names(tmp_path, change, elsewhere):
    """The run was stopped, and evaluate.py wrote a report on its last snapshot, or another one."""
    record = {"plot_dir": str(tmp_path / "plots")} if elsewhere else {}
    run = leave_run(tmp_path / "run", (0.5, 0.7), record=record, epochs=9)
    write_metrics(run, {"epoch": 2, "top1": 0.75, "run": {"id": "run", "settings": {}}} | change)
    leave_predictions(run, "yn")
    if elsewhere:
        (run / "plots_complete").rename(tmp_path / "plots")
    (past,) = runs_of(run)
    assert (past.top1, past.predictions is None) == ((0.7, True) if change else (0.75, False))


def test_predictions_of_another_epoch_are_named(tmp_path):
    run = leave_run(tmp_path / "run", (0.5, 0.7, 0.6))
    leave_predictions(run, "yn")
    assert runs_of(run)[0].predicted_by == ""
    last = {"epoch": 3, "top1": 0.6, "loss": 1.0}  # with --select best
    write_metrics(run, {"epoch": 2, "top1": 0.7, "last": last, "run": {"id": "run"}})
    (past,) = runs_of(run)
    assert (past.predicted_by, past.top1) == ("epoch 2", 0.6)
    assert "only run (epoch 2) is right on 0" in mcnemar(past, past)


def test_the_mean_under_corruption_is_that_of_the_report(tmp_path):
    run = leave_run(tmp_path / "run")
    report = {"epoch": 3, "top1": 0.6, "run": {"id": "run"}}
    write_metrics(run, report | {"corruptions": {"mean_accuracy": 0.5, "images": 40}})
    assert compare(runs_of(run)).columns()["corrupted"] == ["50.00%"]
    write_metrics(run, report | {"corruptions": {"mean_accuracy": "0.5"}})
    with pytest.raises(UserError, match=r"is not a metrics\.json of main\.py or evaluate\.py"):
        runs_of(run)


def test_the_figures_of_a_result_are_those_of_its_report(tmp_path):
    """Its epochs were tested on other images. The warning is on the figures."""
    results = [
        leave_result(tmp_path / name, top1=top1, dataset=tested)
        for name, top1, tested in (("one", 0.8, "bars"), ("two", 0.9, "discs"))
    ]
    past = runs_of(*results)
    assert [run.top1 for run in past] == [0.8, 0.9]
    assert [run.best.test_accuracy for run in past] == [0.7, 0.7]
    comparison = compare(past)
    assert comparison.tested_elsewhere.startswith("two: trained on bars; ")
    assert "of those of discs" in comparison.tested_elsewhere
    assert comparison.warning.endswith("one: bars, 40 test images; two: discs, 40 test images")
    assert "images" not in comparison.differing
    assert compare(past[:1]).tested_elsewhere == ""


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        ({}, False),
        ({"tta": "flip"}, True),
        ({"weights": "ema"}, True),
        ({"dataset": "discs"}, True),
        ({"images": 20}, True),
    ],
)
def test_seeds_have_a_mean_only_if_they_are_evaluated_alike(tmp_path, change, apart):
    one = leave_result(tmp_path / "one", seed=1)
    other = leave_result(tmp_path / "other", seed=2, **change)
    comparison = compare(runs_of(one, other))
    assert len(comparison.lines) == 1 + apart
    assert bool(comparison.warning) is bool(change.keys() & {"dataset", "images"})
    assert not change.keys() & {"tta", "weights"} - set(comparison.differing)


def test_copies_of_a_result_are_compared(tmp_path):
    leave_result(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    assert [run.name for run in runs_of(tmp_path / "one", tmp_path / "again")] == ["one", "again"]


@pytest.mark.parametrize("epoch", [2, 3])
@pytest.mark.parametrize("with_last", [False, True])
def test_calibration_and_corruption_are_those_of_the_last_epoch(tmp_path, epoch, with_last):
    run = leave_run(tmp_path / "run")
    last = {"epoch": 3, "top1": 0.6, "loss": 1.0, "calibration_error": 0.25}
    report = {"epoch": epoch, "top1": 0.7, "run": {"id": "run"}, "calibration_error": 0.5}
    report |= {"corruptions": {"mean_accuracy": 0.5, "images": 40}}
    write_metrics(run, report | ({"last": last} if with_last else {}))
    (past,) = runs_of(run)
    errors = {(2, False): None, (2, True): 0.25, (3, False): 0.5, (3, True): 0.5}
    assert past.record.calibration_error == errors[epoch, with_last]
    assert past.record.corrupted == (0.5 if epoch == 3 else None)


def test_a_report_alone_is_a_run_too(tmp_path):
    run = leave_run(tmp_path / "run", lr=0.2)
    leave_predictions(run, "yn")
    (past,) = runs_of(run / "plots_complete")
    assert (past.top1, past.record.settings["lr"], past.record.dataset) == (0.6, 0.2, "bars")
    assert (past.epochs_done, past.predicted_by, bool(past.predictions)) == (3, "", True)
    assert (past.epochs_in_words, past.record.test_images) == ("evaluated only", 40)
    (waiting,) = runs_of(leave_run(tmp_path / "waiting", (), epochs=9))
    assert waiting.epochs_in_words == "0 of 9"
