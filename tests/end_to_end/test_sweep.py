"""sweep.py with main.py itself; tests/commands/test_sweeping.py has what needs no training."""

from pathlib import Path

from support.commands import QUICK
from support.outputs import TIMINGS, rows_of

SWEEP = """
[flags]
network = "lite"
dataset = "digits"
limit_train = 60
limit_test = 40
val_fraction = 0.2
batch_size = 20
epochs = 2
num_workers = 0
image_sizes = "8"
snapshot_freq = 1
plot_training = false
plot_evaluation = false
report = false

[grid]
lr = [0.2]
"""


def test_a_trial_is_an_ordinary_run(command):
    Path("sweep.toml").write_text(SWEEP)
    done = command("sweep", "sweep.toml")
    assert (done.code, done.err) == (0, "")
    flags = (*QUICK, "--val_fraction", "0.2", "--lr", "0.2", "--run_dir", "run")
    assert command("main", *flags).code == 0
    trial, run = (rows_of(Path(path, "log")) for path in ("sweeps/sweep/trial-0000", "run"))
    for rows in (trial, run):
        for row in rows:
            for name in TIMINGS:
                del row[name]
    assert trial == run
    assert f"trial 0: validation accuracy {float(run[-1]['val_accuracy']):.2%}" in done.out
