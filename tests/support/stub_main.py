"""Stands in for main.py in tests of sweeps: writes a history at once, or an epoch at a time.

The validation accuracy grows with --lr, and a little with the epoch and the seed. In the last epoch
it is 5 points lower. --lr 9 fails, --lr 0.1 takes its time. After a signal the exit code is that of
main.py, or STUB_EXIT.
"""

import argparse
import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cifarnet.checkpoints.history import COLUMNS
from cifarnet.settings import Settings

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--epochs", type=int)
parser.add_argument("--run_dir", type=Path)
parser.add_argument("--val_fraction", type=float)
parser.add_argument("--dataset")
parser.add_argument("--data_dir", type=Path)  # a file: epoch n ends when it has n lines
options, rest = parser.parse_known_args()
assert rest == ["--resume", "auto"], rest

log = options.run_dir / "log" / "training_complete_20260101-000000.log"
history = log.with_suffix(".csv")
log.parent.mkdir(parents=True, exist_ok=True)
log.touch()
_, *rows = csv.DictReader(history.read_text().splitlines()) if history.exists() else [None]
with (options.run_dir / "starts.txt").open("a") as file:
    print(len(rows), file=file)
(options.run_dir / "threads.txt").write_text(os.environ["OMP_NUM_THREADS"])


def end(signum, frame):
    with (options.run_dir / "signals.txt").open("a") as file:
        print(signum, file=file)
    sys.exit(int(os.environ.get("STUB_EXIT", 128 + signum)))


signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
if options.lr == 9:
    sys.exit("error: broken\n\n")

flags = {"lr": options.lr, "seed": options.seed, "epochs": options.epochs, "val_fraction": 0.5}
keys = {"format": 1, "run_id": options.run_dir.name, "started": "x", "plot_dir": "none"}
keys |= {"settings": Settings.from_flags(**flags).flags, "epochs_done": 0, "figures": None}
keys |= {"device": None, "dataset": None, "model": None}
log.with_suffix(".run.json").write_text(json.dumps(keys))
BLANK = {"test_accuracy": "", "skipped_steps": 0}
# the weights of --init are good already
start = dict.fromkeys(COLUMNS, 0.5) | BLANK | {"epoch": 0, "val_accuracy": 0.999}
for epoch in range(len(rows) + 1, options.epochs + 1):
    while options.data_dir and len(options.data_dir.read_text().splitlines()) < epoch:
        time.sleep(0.01)
    time.sleep(0.5 if options.lr == 0.1 else 0)
    accuracy = 0.9 * options.lr + 0.001 * epoch + 0.0001 * options.seed
    accuracy -= 0.05 * (epoch == options.epochs)
    row = dict.fromkeys(COLUMNS, 0.5) | {"epoch": epoch, "val_accuracy": accuracy, "seconds": 2.0}
    rows.append(row | BLANK)
    part = history.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([start, *rows])
    part.replace(history)
