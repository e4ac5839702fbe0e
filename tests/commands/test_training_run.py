"""What a run tells other programs: the file .run.json beside its log."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.commands import QUICK
from support.outputs import figures, rows_of

import train
from cifarnet.core.errors import RunError
from cifarnet.reporting import run_record
from commands import run_report

KEYS = {
    *("format", "run_id", "command", "started", "ended", "status", "settings", "versions"),
    *("device", "dataset", "model", "resumed_from", "initialized_from", "teacher"),
    *("comparable_after", "epochs_done", "figures", "snapshot_dir", "plot_dir", "seconds"),
}


def records() -> list[dict[str, Any]]:
    """The records of all runs, the oldest first; each has the name of its log."""
    paths = sorted(Path("log").glob("*.run.json"))
    logs = sorted(Path("log").glob("*.log"))
    assert [path.name.removesuffix(".run.json") for path in paths] == [log.stem for log in logs]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def stop_in_epoch(epoch: int, end):
    """Stands for `train.run_epoch`: calls `end()` at the start of `epoch`."""
    run_epoch = train.run_epoch

    def run(learner, objective, batches, plan, stop):
        if learner.progress.epoch + 1 == epoch:
            end()
        return run_epoch(learner, objective, batches, plan, stop)

    return run


def test_a_finished_run_and_one_that_evaluates_it_again(command):
    flags = (*QUICK, "--save_best", "--label_smoothing", "0.2")
    assert command("main", *flags).code == 0
    (first,) = records()
    assert set(first) == KEYS
    assert (first["format"], first["status"], first["epochs_done"]) == (1, "finished", 2)
    assert first["command"] == ["main.py", *flags]
    assert first["started"] <= first["ended"]
    assert first["settings"]["label_smoothing"] == 0.2
    device, dataset, model = first["device"], first["dataset"], first["model"]
    assert (device["type"], device["precision"], device["world_size"]) == ("cpu", "float32", 1)
    assert (dataset["name"], dataset["train"], dataset["val"], dataset["test"]) == (
        *("digits", 60, 0, 40),
    )
    assert len(dataset["classes"]) == 10
    assert (model["name"], model["parameters"], model["image_size"]) == ("LiteNet", 174_506, 32)
    assert first["figures"] == {name: figures()[name] for name in ("last", "best")}
    assert first["seconds"] == pytest.approx(
        sum(float(row["train_seconds"]) for row in rows_of(Path("log")))
    )
    assert command("main", *flags, "--resume", "auto").code == 0
    again = records()[1]
    assert again["run_id"] == first["run_id"]
    assert again["resumed_from"] == {"snapshot": "snapshots_complete/last.pth", "epoch": 2}
    assert again["figures"] == first["figures"]


def test_a_run_that_is_stopped_and_resumed(command, monkeypatch):
    def interrupt():
        (record,) = records()
        assert (record["status"], record["ended"], record["figures"]) == ("running", None, None)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(train, "run_epoch", stop_in_epoch(2, interrupt))
        assert command("main", *QUICK).code == 130
    (stopped,) = records()
    assert (stopped["status"], stopped["epochs_done"], stopped["figures"]) == ("stopped", 1, None)
    assert stopped["ended"]
    assert command("main", *QUICK, "--resume", "auto").code == 0
    resumed = records()[1]
    assert (resumed["status"], resumed["epochs_done"]) == ("finished", 2)
    assert resumed["resumed_from"] == {"snapshot": "snapshots_complete/last.pth", "epoch": 1}
    assert resumed["figures"]["best"] is None


@pytest.mark.parametrize("problem", [RunError("it failed"), ZeroDivisionError()], ids=repr)
def test_a_run_that_fails(command, monkeypatch, problem):
    def fail():
        raise problem

    monkeypatch.setattr(train, "run_epoch", stop_in_epoch(1, fail))
    if isinstance(problem, RunError):
        assert command("main", *QUICK).code == 1
    else:  # a bug keeps its traceback
        with pytest.raises(ZeroDivisionError):
            command("main", *QUICK)
    assert [record["status"] for record in records()] == ["failed"]


def test_a_disk_that_takes_no_record_ends_with_1_after_the_report(command, monkeypatch):
    def fail(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_record, "write_text", fail)
    done = command("main", *QUICK)
    assert done.code == 1
    assert done.err == "error: run.json could not be written; see the log\n"
    assert figures()["epoch"] == 2


def test_a_best_snapshot_that_was_moved_away_is_missed(command, monkeypatch):
    monkeypatch.setattr("commands.run_report._find_best", lambda run, source: None)
    done = command("main", *QUICK, "--select", "best")
    assert (done.code, figures()["epoch"]) == (1, 2)
    assert "--select best: no snapshot of the best epoch" in done.err


def test_a_run_that_fails_after_its_report_keeps_its_figures(command, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plots.training_curves", fail)
    assert command("main", *QUICK, "--plot_training").code == 1
    (record,) = records()
    assert (record["status"], record["figures"]["last"]) == ("failed", figures()["last"])


def test_a_temperature_that_cannot_be_written_costs_no_figures(command, monkeypatch):
    def fail(model, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_report, "keep_temperature", fail)
    done = command("main", *QUICK, "--limit_train", "600", "--val_fraction", "0.4")
    assert done.code == 1
    last = "the temperature could not be written to snapshots_complete/last.pth"
    assert done.err == f"error: {last} (No space left on device)\n"
    (record,) = records()
    assert record["figures"]["last"]["top1"] is not None
