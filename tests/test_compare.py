"""compare.py, as a user starts it: on results/, on runs made here, and on what is no run."""

import csv
import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import QUICK
from states import make_row, make_state

import compare
from cifarnet.checkpoints import snapshots
from cifarnet.checkpoints.state import Progress
from cifarnet.core.log import RunLog
from cifarnet.reporting.recorders import HistoryCsv
from cifarnet.settings import FLAGS, Settings

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
NAMES = ("as_run", "hour", "long", "published")


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


def table(path: Path) -> dict[str, dict[str, str]]:
    """The lines of a comparison's CSV file, by the name of the run."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def leave_run(folder: Path, accuracies=(0.5, 0.7, 0.6), report=True, **changes) -> Path:
    """What a run with the settings `changes` leaves in `folder`: log, history and report."""
    settings = Settings.from_flags(**{"epochs": len(accuracies), **changes})
    log_dir, plot_dir = folder / "log", folder / "plots_complete"
    for directory in (log_dir, plot_dir):
        directory.mkdir(parents=True)
    progress = Progress()
    for epoch, accuracy in enumerate(accuracies, 1):
        progress.add(make_row(epoch, test_accuracy=accuracy, seconds=4.0, train_seconds=3.0))
    with RunLog() as log:
        log.open(log_dir)
        for what, wanted in (("settings", False), ("defaults", True)):
            shown = (
                f"{name}={value}"
                for name, value in settings.flags.items()
                if (value == FLAGS[name].default) == wanted
            )
            log.line(f"{what}: {', '.join(shown)}")
        log.line("model: 1,234 trainable parameters, 0.01 MiB as float32")
        HistoryCsv(log).start(progress)
    run = {"log": log.path.name, "settings": settings.flags}
    if report:
        figures = {
            "top1": accuracies[-1],
            "loss": 1.0,
            "epoch": len(accuracies),
            "dataset": "bars",
            "run": run,
        }
        (plot_dir / "metrics.json").write_text(json.dumps(figures))
    return folder


def leave_predictions(run: Path, right: str, image="{}") -> None:
    """Writes predictions.csv: of each letter of `right`, whether an image's class was found."""
    rows = ["image,true,predicted,probability_true,probability_predicted"]
    for at, hit in enumerate(right):
        rows.append(f"{image.format(at)},a,{'a' if hit == 'y' else 'b'},0.5,0.5")
    (run / "plots_complete" / "predictions.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("by", NAMES)
def test_a_result_has_the_figures_of_its_report_and_history(compared, by):
    code, _, err = compared(RESULTS / by, "--csv", "table.csv")
    assert (code, err) == (0, [])
    row = table(Path("table.csv"))[by]
    report = json.loads((RESULTS / by / "metrics.json").read_text(encoding="utf-8"))
    with (RESULTS / by / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    tested = [(float(h["test_accuracy"]), -int(h["epoch"])) for h in history if h["test_accuracy"]]
    assert float(row["top1"]) == report["top1"]
    assert (float(row["best"]), -float(row["best_epoch"])) == max(tested)
    assert float(row["seconds"]) == pytest.approx(sum(float(h["seconds"]) for h in history))
    images = sum(float(h["images_per_second"]) * float(h["train_seconds"]) for h in history)
    seconds = sum(float(h["train_seconds"]) for h in history)
    assert float(row["images_per_second"]) == pytest.approx(images / seconds)
    assert (row["parameters"], row["best_on"]) == ("174762", "test")
    assert row["epochs_done"] == row["epochs_asked"] == str(len(history))


def test_all_of_results(compared):
    """results/* also names a README and a folder of logs."""
    code, out, err = compared(*sorted(RESULTS.iterdir()), "--csv", "t.csv", "--html", "t.html")
    assert code == 0
    assert len(err) == 1 and err[0].startswith("passed over: ") and "README.md" in err[0]
    rows = table(Path("t.csv"))
    logs = {path.stem for path in RESULTS.glob("tried/*.log")}
    assert set(rows) == logs | set(NAMES)
    assert rows["18-epochs-light-taught"]["best"] == "0.8624"
    assert rows["18-epochs-light-taught"]["best_on"] == "val"
    assert rows["6-epochs-lr-halved"]["lr"] == "0.1"
    assert rows["12-epochs-residual"]["parameters"] == "2494890"
    assert rows["published"]["lr"] == "0.1" and rows["hour"]["muon_momentum"] == "0.9"
    assert all(len(line) <= 120 for line in out)


def test_what_differs_is_shown_and_nothing_else(compared, tmp_path):
    leave_run(tmp_path / "one", lr=0.1)
    leave_run(tmp_path / "other", lr=0.2, dataset_name="a, b=c", plot_freq=3, accuracies=(0.4, 0.9))
    code, out, _ = compared("one", "other", "--csv", "table.csv")
    assert code == 0
    header = Path("table.csv").read_text().splitlines()[0].split(",")
    assert header[:4] == ["run", "runs", "epochs", "lr"]
    assert header[4] == "top1"  # no other setting differs that changes a result
    text = "\n".join(out)
    assert re.search(r"^one +3 +0\.1 +60\.00% +70\.00% +2 +0:00:12 +0 ", text, re.MULTILINE), text
    assert "3 of 3" in text


def test_seeds_become_mean_deviation_and_count(compared, tmp_path):
    last = {1: 0.60, 2: 0.64, 3: 0.68}
    for seed, accuracy in last.items():
        leave_run(tmp_path / f"seed{seed}", (0.5, accuracy), seed=seed)
    leave_run(tmp_path / "again", (0.5, 0.1), seed=3)  # the same seed says nothing of seeds
    leave_run(tmp_path / "shorter", (0.5,), seed=4, epochs=2)  # still under way
    code, out, _ = compared(*tmp_path.iterdir(), "--csv", "table.csv")
    assert code == 0
    rows = sorted(table(Path("table.csv")).values(), key=lambda row: -int(row["runs"]))
    assert [row["runs"] for row in rows] == ["3", "1", "1"]
    alone = next(row for row in rows if row["run"] in ("again", "seed3"))
    values = [0.60, 0.64, 0.10 if alone["run"] == "seed3" else 0.68]
    assert float(rows[0]["top1"]) == pytest.approx(statistics.mean(values))
    assert float(rows[0]["top1_deviation"]) == pytest.approx(statistics.stdev(values))
    assert sorted(rows[0]["seed"].split(", ")) == ["1", "2", "3"]
    assert any(" ± " in line for line in out)


def test_a_run_is_one_line_by_whatever_name(compared, tmp_path):
    run = leave_run(tmp_path / "run")
    log = next(run.glob("log/*.log"))
    code, _, _ = compared(run, log, log.with_suffix(".csv"), log.parent, "--csv", "table.csv")
    assert (code, len(table(Path("table.csv")))) == (0, 1)


@pytest.mark.parametrize(
    "folders", [("lr1/seed", "lr2/seed"), ("x/y/seed", "y/x/seed"), ("a/seed", "b/c/seed")]
)
@pytest.mark.parametrize("as_snapshots", [False, True])
def test_runs_of_one_name_are_told_apart(compared, tmp_path, folders, as_snapshots):
    names = [tmp_path / folder for folder in folders]
    for lr, name in enumerate(names, 1):
        if as_snapshots:
            name.mkdir(parents=True)
            state = make_state()
            state.config["lr"] = lr / 10
            snapshots.save(snapshots.pack(state), name / "last.pth")
        else:
            leave_run(name, lr=lr / 10)
    compared(*(name / "last.pth" if as_snapshots else name for name in names), "--csv", "t.csv")
    rows = table(Path("t.csv"))
    assert [row["lr"] for row in rows.values()] == ["0.1", "0.2"]
    own = [name.split("/")[:-1] for name in rows]
    assert all(
        set(folder.split("/")[:-1]) <= set(o) for folder, o in zip(folders, own, strict=True)
    )


def test_a_real_run_by_folder_log_and_snapshot(command, compared):
    assert command("main", *QUICK, "--run_dir", "run").code == 0
    log = next(Path("run/log").glob("*.log"))
    snapshot = "run/snapshots_complete/last.pth"
    shutil.copy(log, "alone.log")  # without its history: the lines of the log are read
    code, _, _ = compared("run", snapshot, "alone.log", "--csv", "table.csv")
    assert code == 0
    of_folder, of_snapshot, of_log = table(Path("table.csv")).values()
    report = json.loads(Path("run/plots_complete/metrics.json").read_text())
    for row, digits in ((of_folder, 12), (of_snapshot, 12), (of_log, 4)):
        assert float(row["top1"]) == pytest.approx(report["top1"], abs=10**-digits)
        assert (row["parameters"], row["epochs_done"]) == (of_folder["parameters"], "2")
    settings = Path("table.csv").read_text().splitlines()[0].split(",top1,")[0]
    assert settings == "run,runs"  # all three name the same settings


def test_a_run_under_way(compared, tmp_path):
    run = leave_run(tmp_path / "run", report=False, epochs=9)
    history = next(run.glob("log/*.csv"))
    history.write_text(history.read_text() + "4,0.5,0.")  # a row that is being written
    waiting = leave_run(tmp_path / "waiting", (), report=False, epochs=9)
    code, out, err = compared(run, waiting)
    assert (code, err) == (0, [])
    assert any("3 of 9" in line for line in out) and any("0 of 9" in line for line in out)


def test_an_older_report_is_not_taken_for_that_of_the_newest_run(compared, tmp_path):
    run = leave_run(tmp_path / "run", (0.5, 0.9))
    newer = leave_run(tmp_path / "newer", (0.2,), report=False)
    for path in newer.glob("log/*"):
        shutil.copy(path, run / "log" / f"training_complete_9{path.suffix}")
    compared(run, "--csv", "table.csv")
    assert [row["top1"] for row in table(Path("table.csv")).values()] == ["0.2"]


OF_OTHERS = {  # reports that evaluate.py writes into the folder of a run
    "another run's snapshot": {"run": {"id": "b", "settings": {"lr": 0.3, "epochs": 2}}},
    "a file of weights": {"run": {"id": None, "settings": {}}},
    "other views": {"tta": "flip"},
    "fewer images": {"images": 20},
}


@pytest.mark.parametrize("change", [{}, *OF_OTHERS.values()], ids=["this run", *OF_OTHERS])
def test_a_report_of_evaluate_is_that_of_the_run_only_if_it_is_of_the_same(
    compared, tmp_path, change
):
    run = leave_run(tmp_path / "run", (0.5, 0.9), lr=0.2)
    log = next(run.glob("log/*.log"))
    with log.open("a") as file:
        file.write("12:00:00 data: bars, 60 training, 40 test images, 2 classes; mean 0.1\n")
    of_run = {"id": "a", "log": None, "settings": {"lr": 0.2, "epochs": 2}}
    report = {"top1": 0.75, "loss": 1.0, "epoch": 2, "dataset": "bars", "images": 40, "run": of_run}
    (run / "plots_complete" / "metrics.json").write_text(json.dumps(report | change))
    compared(run, "--csv", "table.csv")
    row = table(Path("table.csv"))["run"]
    assert row["top1"] == ("0.9" if change else "0.75")


def test_a_snapshot_names_its_settings(compared, tmp_path):
    for name, epochs in (("a", 10), ("b", 20)):
        state = make_state()
        state.config["epochs"] = epochs
        snapshots.save(snapshots.pack(state), tmp_path / f"{name}.pth")
    code, _, err = compared("a.pth", "b.pth", "--csv", "table.csv")
    assert (code, err) == (0, [])
    assert {row["epochs"] for row in table(Path("table.csv")).values()} == {"10", "20"}


@pytest.mark.parametrize(
    ("one", "other", "p"), [("yyyyyy", "nnnnnn", 2 * 0.5**6), ("yn", "ny", 1.0), ("yy", "yy", 1.0)]
)
def test_mcnemar(compared, tmp_path, one, other, p):
    for name, right, lr in (("one", one, 0.1), ("other", other, 0.2)):
        leave_predictions(leave_run(tmp_path / name, lr=lr), right)
    code, out, _ = compared("one", "other", "--html", "page.html")
    only = sum(a > b for a, b in zip(one, other, strict=True))
    said = f"McNemar's test on {len(one)} images: only one is right on {only}, "
    assert code == 0
    assert any(line.startswith(said) and f"p = {p:.3g} " in line for line in out), out
    assert said.partition(":")[2] in Path("page.html").read_text()


def test_mcnemar_says_which_model_answered(compared, tmp_path):
    """With --select best, the predictions are not those of the last model."""
    for name, lr in (("one", 0.1), ("other", 0.2)):
        leave_predictions(leave_run(tmp_path / name, lr=lr), "yyn")
    path = tmp_path / "other" / "plots_complete" / "metrics.json"
    figures = json.loads(path.read_text())
    last = {name: figures[name] for name in ("top1", "loss", "epoch")}
    path.write_text(json.dumps(figures | {"epoch": 2, "top1": 0.7, "last": last}))
    out = compared("one", "other")[1]
    assert "only one is right on 0, only other (epoch 2) on 0;" in out[-1]


def test_mcnemar_refuses_other_images(compared, tmp_path):
    leave_predictions(leave_run(tmp_path / "one"), "yyn")
    leave_predictions(leave_run(tmp_path / "other"), "yyn", image="test/{}.png")
    code, out, _ = compared("one", "other")
    assert code == 0
    assert "refused, as one and other were not tested on the same images" in out[-1]


class Addresses(HTMLParser):
    """Collects the addresses and the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.addresses, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_one_file_and_names_are_text(compared, tmp_path):
    name = '<script>alert("x")</script>'.replace("/", "\u2044")  # no name of a file holds a /
    leave_run(tmp_path / name, lr=0.1)
    leave_run(tmp_path / "日本", lr=0.2)
    code, _, _ = compared(name, "日本", "--html", "page.html")
    assert code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    found = Addresses()
    found.feed(page)
    assert "script" not in found.tags and found.addresses == []
    assert not re.search(r"https?:|url\(|@import", page)
    assert "default-src 'none'" in page
    assert name in found.text and "日本" in found.text
    assert found.tags.count("svg") == 4  # accuracy and loss, by epoch and by time
    assert found.tags.count("path") == 2 * 2 * 4  # runs, training and test, charts


@pytest.mark.parametrize("out", ["table.csv", "page.html"])
def test_a_comparison_is_replaced_but_nothing_else(compared, tmp_path, out):
    flag = f"--{out.rpartition('.')[2]}"
    run = leave_run(tmp_path / "run")
    assert compared(run, flag, out)[0] == compared(run, flag, out)[0] == 0
    history = next(run.glob("log/*.csv"))
    content = history.read_bytes()
    code, _, err = compared(run, flag, history)
    assert (code, len(err)) == (2, 1) and "no comparison" in err[0]
    assert history.read_bytes() == content
    code, _, err = compared(run, flag, "missing/file")
    assert (code, len(err)) == (2, 1)


def break_report(run: Path) -> Path:
    (run / "plots_complete" / "metrics.json").write_text("{")
    return run


def break_history(run: Path) -> Path:
    history = next(run.glob("log/*.csv"))
    history.write_text(history.read_text().replace("train_loss", "loss"))
    return history


def no_number(run: Path) -> Path:
    history = next(run.glob("log/*.csv"))
    history.write_text(re.sub("^2", "two", history.read_text(), flags=re.MULTILINE))
    return history


def no_report(run: Path) -> Path:
    (run / "plots_complete" / "metrics.json").write_text("[1]")
    return run


def no_name(run: Path) -> Path:
    path = run / "plots_complete" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": ["bars"]}))
    return run


def no_snapshot(run: Path) -> Path:
    (run / "x.pth").write_bytes(b"nothing")
    return run / "x.pth"


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (break_report, "is no metrics.json of main.py"),
        (no_report, "is no metrics.json of main.py"),
        (no_name, "is no metrics.json of main.py"),
        (break_history, "lacks the columns train_loss"),
        (no_number, "an epoch is no number"),
        (no_snapshot, "is damaged, or no snapshot"),
        (lambda run: run / "plots", "is not there"),
        (lambda run: run.parent / "empty", "holds no run"),
        (lambda run: ROOT / "README.md", "no run is named"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_bad_input_is_one_line(compared, tmp_path, breaks, words):
    (tmp_path / "empty").mkdir()
    code, _, err = compared(breaks(leave_run(tmp_path / "run")))
    assert code == 2
    assert err[-1].startswith("error: ") and words in err[-1]
    assert len(err) == 1 + (words == "no run is named")


def test_broken_predictions_are_one_line(compared, tmp_path):
    runs = [leave_run(tmp_path / name) for name in ("one", "other")]
    for run in runs:
        leave_predictions(run, "yy", image="same")
    code, _, err = compared(*runs)
    assert (code, len(err)) == (2, 1) and "names no image, or one twice" in err[0]
    (runs[0] / "plots_complete" / "predictions.csv").write_text("image,true\n1,a\n")
    code, _, err = compared(*runs)
    assert (code, len(err)) == (2, 1) and "lacks the columns predicted" in err[0]
