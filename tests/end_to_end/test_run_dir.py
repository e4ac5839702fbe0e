"""Runs that stay apart: folders of their own, kept settings, reports that are not replaced."""

from pathlib import Path

from support.commands import QUICK, QUIET
from support.outputs import figures

from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.reporting.report_files import CURVES


def report_in(run: str) -> dict:
    return figures(Path(run, "plots_complete"))


def test_a_run_has_a_folder_of_its_own_and_its_report_says_which_it_is(command):
    for seed in ("1", "2"):
        run = command("main", *QUICK, "--epochs", "1", "--run_dir", f"runs/{seed}", "--seed", seed)
        assert (run.code, run.err) == (0, "")
    assert [path.name for path in Path().iterdir()] == ["runs"]
    for seed in (1, 2):
        folder, report = Path("runs", str(seed)), report_in(f"runs/{seed}")
        snapshot = read_snapshot(folder / "snapshots_complete" / "last.pth")
        assert report["run"]["id"] == snapshot.state.run_id
        assert (folder / "log" / report["run"]["log"]).is_file()
        assert report["run"]["command"].endswith(f"--run_dir runs/{seed} --seed {seed}")
        assert report["run"]["settings"]["seed"] == seed

    # the same network again: its report is replaced; another one's is kept
    first = report_in("runs/1")
    assert command("evaluate", "--run_dir", "runs/1", *QUIET).code == 0
    again = report_in("runs/1")
    assert (again["top1"], again["sha256"]) == (first["top1"], first["sha256"])
    assert again["run"]["id"] == first["run"]["id"]
    assert again["run"] == first["run"]  # what the run said stays
    assert again["last"] == first["last"]
    assert again["evaluated_by"] == " ".join(["evaluate.py --run_dir runs/1", *QUIET])
    other = "runs/2/snapshots_complete/last.pth"
    places = ("--snapshot", other, "--plot_dir", "runs/1/plots_complete")
    done = command("evaluate", *places, *QUIET)
    assert "moved the report of another network, temperature or images to " in done.out
    (moved,) = Path("runs/1/plots_complete").glob("before_*")
    assert figures(moved)["sha256"] == first["sha256"]
    assert report_in("runs/1")["sha256"] == report_in("runs/2")["sha256"]


def test_a_snapshot_alone_goes_on_with_its_settings(command, monkeypatch):
    flags = ("--lr", "0.05", "--weight_decay", "0", "--run_dir", "run")
    assert command("main", *QUICK, "--epochs", "1", *flags).code == 0
    last = "run/snapshots_complete/last.pth"
    done = command("main", "--resume", last, "--epochs", "2")
    assert (done.code, done.err) == (0, "")
    assert f"resuming after epoch 1 from {last}; changed: epochs 1 -> 2" in done.out
    settings = next(line for line in done.out.splitlines() if line.startswith("settings: "))
    assert "dataset=digits, " in settings
    assert "lr=0.05, " in settings
    assert "momentum" not in settings  # a default: those follow
    snapshot = read_snapshot(Path(last))
    assert (snapshot.epoch, snapshot.settings.training.weight_decay) == (2, 0.0)

    def read(*_):
        raise AssertionError("images were read before the refusal")

    monkeypatch.setattr("commands.training_run.load_splits", read)
    done = command("main", "--resume", last, "--epochs", "3", "--lr", "0.2")
    assert done.code == 2
    assert done.err.startswith(f"error: lr 0.05 -> 0.2 would alter the result of the run in {last}")


def test_a_renamed_run_goes_on_where_it_lies_and_another_folder_takes_it_over(command, monkeypatch):
    assert command("main", *QUICK, "--epochs", "1", "--run_dir", "old").code == 0
    Path("old").rename("new")
    last = Path("new/snapshots_complete/last.pth")
    assert command("main", "--resume", last, "--epochs", "2").code == 0
    assert not Path("old").exists()
    assert read_snapshot(last).epoch == 2
    assert command("main", "--resume", last, "--epochs", "3", "--run_dir", "third").code == 0
    assert read_snapshot(last).epoch == 2  # untouched
    assert read_snapshot(Path("third/snapshots_complete/last.pth")).epoch == 3
    monkeypatch.chdir(last.parent)
    assert command("main", "--resume", last.name, "--epochs", "3").code == 0
    assert read_snapshot(Path(last.name)).epoch == 3
    assert not Path("log").exists()


def test_the_curves_of_a_run_under_way_stay_when_it_is_evaluated(command):
    assert command("main", *QUICK, "--epochs", "1", "--run_dir", "run", "--plot_training").code == 0
    for path in Path("run/plots_complete").iterdir():  # as before the end of a run
        if path.name not in CURVES:
            path.unlink()
    done = command("evaluate", "--run_dir", "run", *QUIET)
    assert (done.code, "moved" in done.out) == (0, False)
    assert Path("run/plots_complete/training_curves.png").exists()
