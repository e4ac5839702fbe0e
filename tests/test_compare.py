"""compare.py, as a user starts it: on results/, on a run made here, and on what is no run."""

import csv
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.commands import QUICK, without_privileges
from support.runs import leave_predictions, leave_run

import compare

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
NAMES = ("as_run", "hour", "lite", "long", "published", "residual")


@pytest.fixture
def compared(tmp_path, monkeypatch, capsys):
    """`compared(*arguments)` -> exit code, lines on stdout, lines on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # pytest-xdist sets another width

    def run(*arguments):
        code = compare.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def table(path: str = "table.csv") -> dict[str, dict[str, str]]:
    """The lines of a comparison's CSV file, by the name of the run."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_the_results_have_the_figures_of_their_reports_and_histories(compared):
    """results/* also names a README, and three folders without run.json."""
    code, out, err = compared(*sorted(RESULTS.iterdir()), "--csv", "table.csv", "--html", "t.html")
    assert code == 0
    assert len(err) == 4 and all(line.startswith("skipped: ") for line in err)
    assert all(len(line) <= 120 for line in out if ": " not in line)
    rows = table()
    *_, images = compared(RESULTS / "hour", RESULTS / "long", "--html", "t.html")[2]
    assert images.startswith("the page shows no images: ")  # CIFAR-10 is not here
    assert set(rows) == set(NAMES)
    assert rows["published"]["lr"] == "0.1" and rows["hour"]["muon_momentum"] == "0.9"
    for name, row in rows.items():
        report = json.loads((RESULTS / name / "metrics.json").read_text(encoding="utf-8"))
        history = np.genfromtxt(RESULTS / name / "history.csv", delimiter=",", names=True)
        best = history[np.nanargmax(history["test_accuracy"])]
        images = (history["images_per_second"] * history["train_seconds"]).sum()
        for key, expected in {
            **{"top1": report["top1"], "best": best["test_accuracy"], "best_epoch": best["epoch"]},
            **{"seconds": history["seconds"].sum(), "parameters": report["parameters"]},
            **{"images_per_second": images / history["train_seconds"].sum()},
            **{"epochs_done": len(history), "epochs_asked": len(history)},
        }.items():
            rounded = 5e-4 if (name, key) == ("residual", "top1") else 0  # its weights, to float16
            close = pytest.approx(expected, rel=1e-12, abs=rounded)
            assert float(row[key]) == close, (name, key)


def test_a_real_run_by_its_names_and_resumed(command, compared):
    assert command("main", *QUICK, "--run_dir", "run").code == 0
    log = next(Path("run/log").glob("*.log"))
    shutil.copy(log.with_suffix(".csv"), "alone.csv")
    snapshot = "run/snapshots_complete/last.pth"
    assert compared("run", snapshot, "alone.csv", "--csv", "table.csv")[0] == 0
    top1 = json.loads(Path("run/plots_complete/metrics.json").read_text())["top1"]
    rows = table()
    assert len(rows) == 3
    assert list(rows["run"])[:3] == ["run", "runs", "top1"]  # no setting differs
    for row in rows.values():
        assert float(row["top1"]) == pytest.approx(top1, abs=1e-12)
        assert row["epochs_done"] == "2"
    assert rows["run"]["parameters"] == rows["last"]["parameters"]

    more = ("--run_dir", "run", "--resume", "auto", "--epochs", "3")
    assert command("main", *QUICK, *more).code == 0
    assert compared("run/log", "--csv", "table.csv")[::2] == (0, [])
    assert [row["epochs_done"] for row in table().values()] == ["3"]  # two logs of one run


def test_two_runs_with_predictions_are_tested(compared, tmp_path):
    for name, lr in (("one", 0.1), ("other", 0.2)):
        leave_predictions(leave_run(tmp_path / name, lr=lr), "yyn")
    code, out, _ = compared("one", "other", "--html", "page.html")
    assert code == 0
    assert out[-2].startswith("McNemar's test")
    assert out[-2].partition(":")[2] in Path("page.html").read_text()


def test_why_there_is_no_test_is_one_line(compared, tmp_path):
    leave_predictions(leave_run(tmp_path / "one"), "yyn")
    leave_run(tmp_path / "other", lr=0.2)
    leave_run(tmp_path / "third", lr=0.3)
    assert compared("one")[1][-1].startswith("one ")
    line = compared("one", "other", "--html", "page.html")[1][-2]
    assert line.startswith("McNemar's test: left out, as there is no predictions.csv of other;")
    assert line.partition(":")[2] in Path("page.html").read_text()
    assert "it compares two runs" in compared("one", "other", "third")[1][-1]


@pytest.mark.parametrize("dataset", [{"name": "bars", "test": 20}, {"name": "discs", "test": 40}])
def test_different_test_images_are_a_warning(compared, tmp_path, dataset):
    leave_run(tmp_path / "one")
    leave_run(tmp_path / "same", lr=0.2)
    assert "warning" not in "".join(compared("one", "same")[1])
    leave_run(tmp_path / "other", record={"dataset": dataset})
    code, out, _ = compared("one", "other", "same", "--html", "page.html")
    (line,) = [line for line in out if line.startswith("warning: ")]
    where = f"other: {dataset['name']}, {dataset['test']} test images"
    assert code == 0 and where in line and "one, same: bars, 40 test images" in line
    assert line in Path("page.html").read_text()


def test_results_are_compared_on_the_same_images(compared):
    """The epochs of `published` were tested on re-encoded images, its figures are of official
    ones."""
    _, out, _ = compared(RESULTS / "hour", RESULTS / "published", "--html", "t.html")
    assert "warning" not in "".join(out)
    note, _, test, _ = out[-4:]
    assert note.startswith("published: trained on CIFAR-10, JPEG re-encoding; ")
    assert note.endswith(" of those of CIFAR-10") and note in Path("t.html").read_text()
    assert test.startswith("McNemar's test on the 10,000 images in both predictions.csv: only hour")


@pytest.mark.parametrize("out", ["table.csv", "page.html"])
def test_a_comparison_is_replaced_but_nothing_else(compared, tmp_path, out):
    flag = f"--{out.rpartition('.')[2]}"
    run = leave_run(tmp_path / "run")
    assert compared(run, flag, out)[0] == compared(run, flag, out)[0] == 0
    history = next(run.glob("log/*.csv"))
    content = history.read_bytes()
    code, _, err = compared(run, flag, history)
    assert (code, len(err)) == (2, 1) and "is not a comparison" in err[0]
    assert history.read_bytes() == content
    code, _, err = compared(run, flag, "missing/file")
    assert (code, len(err)) == (2, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(("damaged", "is not a metrics.json"), ("damaged/log/a.pth", "a.pth")),
        *(("missing", "missing does not exist"), ("empty", "empty holds no run")),
        (ROOT / "README.md", "no run is named"),
    ],
)
def test_bad_input_is_one_line(compared, tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    run = leave_run(tmp_path / "damaged")
    (run / "log" / "a.pth").write_bytes(b"nothing")
    (run / "plots_complete" / "metrics.json").write_text("{")
    code, _, err = compared(name)
    assert (code, len(err)) == (2, 1 + (words == "no run is named"))
    assert err[-1].startswith("error: ") and words in err[-1]


@pytest.mark.parametrize("name", ["locked", "locked/log", "locked/log/a.csv", "locked/a.pth"])
def test_what_cannot_be_read_is_not_called_missing(tmp_path, name):
    leave_run(tmp_path / "locked", name="a")
    for part in ("", *(["log"] if name.endswith("log") else [])):
        (tmp_path / "locked" / part).chmod(0)
    done = without_privileges(ROOT / "compare.py", tmp_path / name)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot be read (Permission denied)" in done.stderr


def test_a_table_that_cannot_be_written_is_a_failure(compared, tmp_path, monkeypatch):
    leave_run(tmp_path / "run")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cifarnet.core.files.write_text", fail)
    code, _, err = compared("run", "--csv", "t.csv")
    reason = "cannot write it (No space left on device); name another file"
    assert (code, err[-1]) == (1, f"error: --csv t.csv: {reason}")
